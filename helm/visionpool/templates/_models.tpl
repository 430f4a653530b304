{{/* Where models come from: a volume at /models, and for two sources a container that fills it. */}}

{{- define "visionpool.modelsMount" -}}
{{- $models := .Values.models }}
{{- if eq $models.source "pvc" }}
- {name: models, mountPath: /models, readOnly: true{{ with $models.pvc.subPath }}, subPath: {{ . }}{{ end }}}
{{- else if ne $models.source "embedded" }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "visionpool.modelsVolume" -}}
{{- $models := .Values.models }}
{{- if ne $models.source "embedded" }}
- name: models
  {{- if eq $models.source "pvc" }}
  persistentVolumeClaim: {claimName: {{ $models.pvc.claimName }}, readOnly: true}
  {{- else if eq $models.source "hostPath" }}
  hostPath: {path: {{ $models.hostPath.path }}, type: Directory}
  {{- else if eq $models.source "image" }}
  image: {reference: {{ $models.image.reference | quote }}, pullPolicy: {{ $models.image.pullPolicy }}}
  {{- else }}
  emptyDir: {{ with $models.sizeLimit }}{sizeLimit: {{ . }}}{{ else }}{}{{ end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Fetches models before the server starts. */}}
{{- define "visionpool.fetch" -}}
{{- $models := .Values.models }}
{{- $tool := index $models $models.source }}
- name: models
  image: {{ $tool.image }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- with $tool.command }}
  command: {{ toJson . }}
  {{- end }}
  {{- with $tool.args }}
  args: {{ toJson . }}
  {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- if eq $models.source "objectStore" }}
    - {name: MODELS_URL, value: {{ $tool.url | quote }}}
    {{- end }}
    {{- with $tool.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with ternary (list (dict "secretRef" (dict "name" $tool.secretName))) $tool.envFrom (not (empty $tool.secretName)) }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml $models.fetchResources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.containerSecurityContext | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: models, mountPath: /models}
{{- end }}
