{{- define "engineroom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 40 characters: the longest suffix and a pod's hash still fit into 63. */ -}}
{{- define "engineroom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "engineroom.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-scoped objects of two releases must not meet. */ -}}
{{- define "engineroom.clustername" -}}
{{- $full := include "engineroom.fullname" . -}}
{{- if eq $full .Release.Namespace -}}
{{- $full -}}
{{- else -}}
{{- printf "%s-%s" .Release.Namespace $full -}}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "root" $ "component" "operator"). */ -}}
{{- define "engineroom.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{ include "engineroom.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: engineroom
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "engineroom.selectorLabels" -}}
app.kubernetes.io/name: {{ include "engineroom.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- /* Takes (dict "root" $ "image" .Values.image). */ -}}
{{- define "engineroom.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "root" $ "component" "operator"). */ -}}
{{- define "engineroom.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "engineroom.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{- define "engineroom.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "engineroom.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Where pods go. Takes (dict "root" $ "component" "operator" "values" .Values.operator). */ -}}
{{- define "engineroom.scheduling" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if hasKey .values "topologySpreadConstraints" }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "engineroom.selectorLabels" . | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "engineroom.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The Secret whose key `url` is the chart-wide Redis; empty where there is none. */ -}}
{{- define "engineroom.redisSecret" -}}
{{- if .Values.redis.existingSecret -}}
{{- .Values.redis.existingSecret -}}
{{- else if or .Values.redis.enabled .Values.redis.url -}}
{{- printf "%s-redis" (include "engineroom.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- /* A pod is given the new URL when it changes; Kubernetes does not restart it for that. */ -}}
{{- define "engineroom.redisChecksum" -}}
{{- list .Values.redis.enabled .Values.redis.url .Values.redis.existingSecret | toJson | sha256sum | trunc 16 -}}
{{- end -}}

{{- define "engineroom.redisEnv" -}}
{{- with include "engineroom.redisSecret" . }}
- name: ENGINEROOM_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: url
{{- end }}
{{- end -}}

{{- /* Peers of a NetworkPolicy from a list of names of namespaces and of peers; empty: this namespace. */ -}}
{{- define "engineroom.peers" -}}
{{- $peers := list -}}
{{- range . -}}
{{- if kindIs "string" . -}}
{{- $labels := dict "kubernetes.io/metadata.name" . -}}
{{- $peers = append $peers (dict "namespaceSelector" (dict "matchLabels" $labels)) -}}
{{- else -}}
{{- $peers = append $peers . -}}
{{- end -}}
{{- end -}}
{{- default (list (dict "podSelector" dict)) $peers | toYaml -}}
{{- end -}}

{{- /* Peers and ports of the API server, for NetworkPolicies. */ -}}
{{- define "engineroom.apiServerEgress" -}}
{{- $api := .Values.networkPolicy.apiServer -}}
- ports:
    {{- range $api.ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with $api.cidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- define "engineroom.dnsEgress" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{- /* Contradictions that the schema cannot name well. */ -}}
{{- define "engineroom.validate" -}}
{{- $redis := .Values.redis -}}
{{- if and $redis.enabled $redis.url -}}
{{- fail "redis.url: the chart's own Redis is on as well; set redis.enabled=false to use redis.url" -}}
{{- end -}}
{{- if and $redis.url $redis.existingSecret -}}
{{- fail "redis.existingSecret: redis.url is set too; keep one of them" -}}
{{- end -}}
{{- if and .Values.api.enabled (not (include "engineroom.redisSecret" .)) -}}
{{- fail "api.enabled: the API keeps sessions and logs in Redis; set redis.enabled, redis.url or redis.existingSecret, or do without it by api.enabled=false" -}}
{{- end -}}
{{- if and .Values.limiter.enabled (not (include "engineroom.redisSecret" .)) -}}
{{- fail "limiter.enabled: the limiter counts in Redis; set redis.enabled, redis.url or redis.existingSecret" -}}
{{- end -}}
{{- range $namespace := $redis.secretNamespaces -}}
{{- if and $.Values.watchNamespaces (not (has $namespace $.Values.watchNamespaces)) -}}
{{- fail (printf "redis.secretNamespaces: %s is not among watchNamespaces; add it there or take it out here" $namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
