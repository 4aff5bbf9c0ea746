{{- define "qanat.labels" -}}
app.kubernetes.io/name: qanat
app.kubernetes.io/part-of: qanat
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- if .component }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- end }}

{{- define "qanat.selector" -}}
app.kubernetes.io/name: qanat
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- define "qanat.image" -}}
{{- $own := (index .root.Values .component).image -}}
{{- $own | default (printf "%s:%s" .root.Values.image.repository (.root.Values.image.tag | default .root.Chart.AppVersion)) -}}
{{- end }}

{{- define "qanat.arguments" -}}
- --source=kubernetes
- --trust-domain={{ .Values.trustDomain }}
- --cluster={{ .Values.clusterId }}
- --labels={{ .Values.labels }}
- --log-level={{ .Values.logLevel }}
- --log-format={{ .Values.logFormat }}
{{- end }}

{{- define "qanat.reads" -}}
- apiGroups: [""]
  resources: [namespaces, pods, services]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [security.istio.io]
  resources: [authorizationpolicies, peerauthentications]
  verbs: [get, list, watch]
- apiGroups: [qanat.io]
  resources: [egresspolicies]
  verbs: [get, list, watch]
{{- end }}
