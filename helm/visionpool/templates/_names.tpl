{{/* Names, labels and the image. */}}

{{- define "visionpool.name" -}}
{{ .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name (.Values.nameOverride | default .Chart.Name)) (contains (.Values.nameOverride | default .Chart.Name) .Release.Name)) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* What never changes for an object: Services and budgets find the server's pods by it. */}}
{{- define "visionpool.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "visionpool.labels" -}}
{{ include "visionpool.selector" . }}
app.kubernetes.io/part-of: visionpool
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The metadata of every object. Call with (list . SUFFIX LABELS ANNOTATIONS). */}}
{{- define "visionpool.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "visionpool.name" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- merge (include "visionpool.labels" $root | fromYaml) (index . 2) | toYaml | nindent 2 }}
{{- with index . 3 }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "visionpool.image" -}}
{{- $preset := index .Values.accelerators .Values.accelerator }}
{{- $tag := .Values.image.tag | default (print .Chart.AppVersion $preset.imageSuffix) }}
{{- with .Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "visionpool.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "visionpool.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "visionpool.authSecret" -}}
{{ .Values.auth.existingSecret | default (ternary (print (include "visionpool.name" .) "-api-keys") "" (not (empty .Values.auth.keys))) }}
{{- end }}

{{- define "visionpool.tlsSecret" -}}
{{ ternary (.Values.tls.existingSecret | default (print (include "visionpool.name" .) "-tls")) "" .Values.tls.enabled }}
{{- end }}

{{- define "visionpool.cacheClaim" -}}
{{ .Values.cache.existingClaim | default (ternary (print (include "visionpool.name" .) "-cache") "" .Values.cache.persistent.enabled) }}
{{- end }}

{{/* The load of all pods together: for each, (executing + queued) / slots over its models. */}}
{{- define "visionpool.loadQuery" -}}
{{- $service := print (include "visionpool.name" .) (ternary "" "-grpc" (eq .Values.service.type "ClusterIP")) }}
{{- $of := printf "{namespace=%q,service=%q}" .Release.Namespace $service }}
{{- .Values.autoscaling.keda.query | default (printf "sum((avg_over_time(visionpool_slots_used%[1]s[1m]) + avg_over_time(visionpool_queue_length%[1]s[1m])) / (visionpool_slots%[1]s > 0))" $of) }}
{{- end }}
