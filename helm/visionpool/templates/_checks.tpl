{{/* What values.schema.json cannot say in words that help: which values need which others. */}}

{{- define "visionpool.check" -}}
{{- include "visionpool.checkModels" . }}
{{- include "visionpool.checkScaling" . }}
{{- include "visionpool.checkSecurity" . }}
{{- include "visionpool.checkNetwork" . }}
{{- include "visionpool.checkEnv" . }}
{{- if eq .Values.serving.mode "kserve" }}{{ include "visionpool.checkKserve" . }}{{ end }}
{{- end }}

{{/* A variable that stands twice is refused where manifests are applied by the server's side, as Helm 4 does. */}}
{{- define "visionpool.checkEnv" -}}
{{- $own := include "visionpool.env" . }}
{{- range .Values.extraEnv }}
{{- if contains (printf "{name: %s," .name) $own }}
{{- fail (printf "extraEnv: the chart sets %s itself, from its own values" .name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "visionpool.checkModels" -}}
{{- $needed := dict "pvc" "claimName" "hostPath" "path" "initContainer" "image" "image" "reference" "objectStore" "url" }}
{{- with .Values.models }}
{{- with get $needed .source }}
{{- if not (get (get $.Values.models $.Values.models.source) .) }}
{{- fail (printf "models.source is %s: set models.%s.%s" $.Values.models.source $.Values.models.source .) }}
{{- end }}
{{- end }}
{{- if and (eq .source "image") (eq $.Values.serving.mode "deployment") (semverCompare "<1.31.0-0" $.Capabilities.KubeVersion.Version) }}
{{- fail (printf "models.source is image: Kubernetes %s has no image volumes, 1.33 has; use initContainer instead" $.Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "visionpool.checkScaling" -}}
{{- with .Values.autoscaling }}
{{- if and (ne .mode "none") (gt (int .minReplicas) (int .maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas (%v) is above autoscaling.maxReplicas (%v)" .minReplicas .maxReplicas) }}
{{- end }}
{{- if and (eq .mode "keda") (not .keda.serverAddress) }}
{{- fail "autoscaling.mode is keda: set autoscaling.keda.serverAddress to the Prometheus that scrapes visionpool" }}
{{- end }}
{{- if and (eq .mode "keda") (not .keda.query) (not $.Values.metrics.serviceMonitor.enabled) }}
{{- fail "autoscaling.mode is keda: its query counts on labels of the chart's ServiceMonitor. Set metrics.serviceMonitor.enabled, or write autoscaling.keda.query for the labels that your Prometheus gives" }}
{{- end }}
{{- if and (eq .mode "hpa") (eq .hpa.metric "cpu") (not (dig "requests" "cpu" "" $.Values.resources)) }}
{{- fail "autoscaling.hpa.metric is cpu, a share of what is requested: set resources.requests.cpu" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "visionpool.checkSecurity" -}}
{{- with .Values.tls }}
{{- if and .enabled (not .existingSecret) (not .certManager.enabled) }}
{{- fail "tls.enabled needs a certificate: set tls.existingSecret, or tls.certManager.enabled and tls.certManager.issuerName" }}
{{- end }}
{{- if and .enabled (not .existingSecret) (not .certManager.issuerName) }}
{{- fail "tls.certManager.enabled: set tls.certManager.issuerName" }}
{{- end }}
{{- if and .clientCertificates (not .enabled) }}
{{- fail "tls.clientCertificates needs tls.enabled" }}
{{- end }}
{{- end }}
{{- if and .Values.auth.existingSecret .Values.auth.keys }}
{{- fail "auth.keys and auth.existingSecret are both set: leave out one" }}
{{- end }}
{{- end }}

{{- define "visionpool.checkNetwork" -}}
{{- range $port, $ingress := .Values.ingress }}
{{- if and $ingress.enabled (not $ingress.hosts) }}
{{- fail (printf "ingress.%s.enabled: set ingress.%s.hosts" $port $port) }}
{{- end }}
{{- end }}
{{- with .Values.gateway }}
{{- if and (or .http.enabled .grpc.enabled) (not .parentRefs) }}
{{- fail "a route belongs to a Gateway: set gateway.parentRefs, such as [{name: my-gateway, namespace: gateways}]" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "visionpool.checkKserve" -}}
{{- if has .Values.models.source (list "hostPath" "initContainer") }}
{{- fail (printf "serving.mode is kserve, which fetches models itself: models.source can be embedded, pvc, image or objectStore, not %s" .Values.models.source) }}
{{- end }}
{{- if and (eq .Values.models.source "objectStore") (not (contains "://" .Values.models.objectStore.url)) }}
{{- fail "serving.mode is kserve: models.objectStore.url has to be one that KServe reads, such as s3://bucket/models" }}
{{- end }}
{{- if .Values.models.objectStore.secretName }}
{{- fail "serving.mode is kserve, which takes the bucket's keys from the Secrets of serviceAccount.name: leave out models.objectStore.secretName" }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- fail "serving.mode is kserve, which talks plain HTTP to pods: end TLS at its gateway, and set tls.enabled to false" }}
{{- end }}
{{- if and (eq .Values.autoscaling.mode "hpa") (eq .Values.autoscaling.hpa.metric "load") }}
{{- fail "serving.mode is kserve, whose HPA knows no metrics of pods: set autoscaling.hpa.metric to cpu, or autoscaling.mode to keda" }}
{{- end }}
{{- if and (eq .Values.autoscaling.mode "keda") (not .Values.autoscaling.keda.query) }}
{{- fail "serving.mode is kserve: write autoscaling.keda.query for the labels that your Prometheus gives KServe's pods" }}
{{- end }}
{{- end }}
