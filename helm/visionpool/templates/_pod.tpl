{{/* The server's container and what it needs of its pod, for a Deployment and for KServe. */}}

{{/* A setting as text: YAML's large numbers are floats to Helm, and would be written as 5e+07. */}}
{{- define "visionpool.text" -}}
{{- if kindIs "slice" . }}{{ join " " . }}
{{- else if kindIs "float64" . }}{{ ternary (toString (int64 .)) (toString .) (eq . (floor .)) }}
{{- else }}{{ toString . }}
{{- end }}
{{- end }}

{{- define "visionpool.env" -}}
{{- $preset := index .Values.accelerators .Values.accelerator }}
{{- range $flag, $value := merge (dict "device" (.Values.server.device | default $preset.device)) .Values.server }}
{{- $text := "" }}
{{- if not (kindIs "invalid" $value) }}{{ $text = include "visionpool.text" $value }}{{ end }}
{{- if $text }}
- {name: VISIONPOOL_{{ snakecase $flag | upper }}, value: {{ $text | quote }}}
{{- end }}
{{- end }}
- {name: VISIONPOOL_HTTP_PORT, value: "8000"}
- {name: VISIONPOOL_GRPC_PORT, value: "8001"}
- {name: VISIONPOOL_METRICS_PORT, value: "8002"}
{{- if include "visionpool.authSecret" . }}
- {name: VISIONPOOL_API_KEYS, value: /run/secrets/visionpool/{{ .Values.auth.secretKey }}}
{{- end }}
{{- if .Values.tls.enabled }}
- {name: VISIONPOOL_TLS_CERT, value: /run/secrets/visionpool-tls/tls.crt}
- {name: VISIONPOOL_TLS_KEY, value: /run/secrets/visionpool-tls/tls.key}
{{- if .Values.tls.clientCertificates }}
- {name: VISIONPOOL_TLS_CLIENT_CA, value: /run/secrets/visionpool-tls/ca.crt}
{{- end }}
{{- end }}
{{- end }}

{{- define "visionpool.resources" -}}
{{- $resource := (index .Values.accelerators .Values.accelerator).resource }}
{{- $resources := deepCopy .Values.resources }}
{{- if $resource }}
{{- $_ := set $resources "limits" (merge (dict $resource (int .Values.gpus)) ($resources.limits | default dict)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* On the metrics port, which is plain with TLS and API keys as well. Call with (list PATH VALUES). */}}
{{- define "visionpool.probe" -}}
httpGet: {path: {{ index . 0 }}, port: metrics}
{{ toYaml (index . 1) }}
{{- end }}

{{/* Call with (list . NAME MODELS), MODELS being the folder; unset: the image's own. */}}
{{- define "visionpool.container" -}}
{{- $root := index . 0 }}
{{- $models := index . 2 }}
{{- with $root.Values -}}
name: {{ index $ 1 }}
image: {{ include "visionpool.image" $root }}
imagePullPolicy: {{ .image.pullPolicy }}
{{- with .extraArgs }}
args:
  - serve
  {{- toYaml . | nindent 2 }}
{{- end }}
env:
  {{- include "visionpool.env" $root | trim | nindent 2 }}
  {{- with $models }}
  - {name: VISIONPOOL_MODELS, value: {{ . }}}
  {{- end }}
  {{- with .extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - {name: http, containerPort: 8000, protocol: TCP}
  - {name: grpc, containerPort: 8001, protocol: TCP}
  - {name: metrics, containerPort: 8002, protocol: TCP}
startupProbe:
  {{- include "visionpool.probe" (list "/health/ready" .probes.startup) | nindent 2 }}
readinessProbe:
  {{- include "visionpool.probe" (list "/health/ready" .probes.readiness) | nindent 2 }}
livenessProbe:
  {{- include "visionpool.probe" (list "/health/live" .probes.liveness) | nindent 2 }}
{{- if .preStopSleepSeconds }}
lifecycle:
  preStop:
    sleep: {seconds: {{ .preStopSleepSeconds }}}
{{- end }}
resources:
  {{- include "visionpool.resources" $root | nindent 2 }}
securityContext:
  {{- toYaml .containerSecurityContext | nindent 2 }}
volumeMounts:
  {{- include "visionpool.mounts" $root | nindent 2 }}
{{- end }}
{{- end }}

{{/* All but the models, which KServe mounts itself. */}}
{{- define "visionpool.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if include "visionpool.authSecret" . }}
- {name: api-keys, mountPath: /run/secrets/visionpool, readOnly: true}
{{- end }}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /run/secrets/visionpool-tls, readOnly: true}
{{- end }}
{{- if eq .Values.serving.mode "deployment" }}
{{- include "visionpool.modelsMount" . }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "visionpool.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
- name: cache
  {{- with include "visionpool.cacheClaim" . }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.cache.sizeLimit }}}
  {{- end }}
{{- with include "visionpool.authSecret" . }}
- name: api-keys
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with include "visionpool.tlsSecret" . }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if eq .Values.serving.mode "deployment" }}
{{- include "visionpool.modelsVolume" . }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What a Deployment's pod and KServe's predictor say alike. */}}
{{- define "visionpool.podSettings" -}}
{{- $preset := index .Values.accelerators .Values.accelerator -}}
serviceAccountName: {{ include "visionpool.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "visionpool.patience" . }}
securityContext:
  {{- $context := .Values.podSecurityContext }}
  {{- with concat ($context.supplementalGroups | default list) $preset.supplementalGroups | uniq }}
  {{- $context = merge (dict "supplementalGroups" .) $context }}
  {{- end }}
  {{- toYaml $context | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
{{- with index $.Values $key }}
{{ dict $key . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/* How long a pod may take to become ready before its rollout has failed: Kubernetes' 10 minutes are too short for models that take
longer. 5 minutes are for nodes and images. */}}
{{- define "visionpool.startSeconds" -}}
{{- with .Values.probes.startup -}}
{{ add (.initialDelaySeconds | default 0) (mul .periodSeconds .failureThreshold) 300 }}
{{- end }}
{{- end }}

{{/* Longer than the server takes at most, from SIGTERM to its end: what is left is for writing logs and leaving. */}}
{{- define "visionpool.patience" -}}
{{ add .Values.preStopSleepSeconds (ceil .Values.server.drainDelay) (ceil .Values.server.gracePeriod) 10 }}
{{- end }}
