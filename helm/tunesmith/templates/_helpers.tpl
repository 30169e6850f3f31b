{{/* Name of every object of the release. */}}
{{- define "tunesmith.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "tunesmith.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "tunesmith.labels" -}}
{{ include "tunesmith.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "tunesmith.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "tunesmith.fullname" .) -}}
{{- end }}

{{/* Not the plain name: version 0.1.0 made that one by itself, and Helm takes over nothing that it did not make. */}}
{{- define "tunesmith.leaseName" -}}
{{- printf "%s-leader" (include "tunesmith.fullname" .) -}}
{{- end }}

{{/* Image of a part: what the values say, else the part's name at the chart's version. Called with (list . "part" "value"). */}}
{{- define "tunesmith.image" -}}
{{- $root := index . 0 -}}
{{- index . 2 | default (printf "%s-%s:%s" $root.Chart.Name (index . 1) $root.Chart.AppVersion) -}}
{{- end }}

{{- define "tunesmith.tlsSecret" -}}
{{- .Values.progress.tls.existingSecret | default (printf "%s-progress-tls" (include "tunesmith.fullname" .)) -}}
{{- end }}
