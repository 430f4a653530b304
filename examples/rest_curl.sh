#!/usr/bin/env bash
# Asks a running server with curl: examples/rest_curl.sh [--url URL] [--model NAME] [PICTURE]
set -euo pipefail

url=http://127.0.0.1:8000 model=shapes picture=$(dirname "$0")/shapes.jpg
while [ $# -gt 0 ]; do
    case $1 in
    --url) url=$2 && shift 2 ;;
    --model) model=$2 && shift 2 ;;
    *) picture=$1 && shift ;;
    esac
done

echo "The models:"
curl --fail-with-body -sS "$url/v1/models"

echo && echo "What $model sees in $picture, the two surest objects:"
curl --fail-with-body -sS --data-binary "@$picture" -H 'Content-Type: image/jpeg' \
    "$url/v1/models/$model/predict?max_detections=2"

echo && echo "Two pictures in one request, as a form:"
curl --fail-with-body -sS -F "image=@$picture" -F "image=@$picture" "$url/v1/models/$model/predict?max_detections=1"

echo && echo "The picture with the results drawn in:"
curl --fail-with-body -sS --data-binary "@$picture" -H 'Content-Type: image/jpeg' -H 'Accept: image/jpeg' \
    -o found.jpg "$url/v1/models/$model/predict"
echo "found.jpg"
