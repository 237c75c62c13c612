{{/* Names and labels. */}}
{{- define "nexus.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "nexus.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "nexus.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "nexus.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The name of a part: (list $ "nexus-gateway"). */}}
{{- define "nexus.part" -}}
{{- printf "%s-%s" (include "nexus.fullname" (index . 0)) (index . 1) }}
{{- end }}

{{/* Labels that select a part's pods: (list $ "nexus-gateway"). */}}
{{- define "nexus.selector" -}}
app.kubernetes.io/name: {{ include "nexus.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "nexus.labels" -}}
{{ include "nexus.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
app.kubernetes.io/part-of: nexus
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "nexus.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "nexus.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* An image of ours: (list $ .Values.nexusGateway.image). */}}
{{- define "nexus.image" -}}
{{- $all := (index . 0).Values.image }}
{{- $one := index . 1 }}
{{- $name := $one.repository }}
{{- if $all.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $all.registry) $name }}{{ end }}
{{- if $one.digest }}{{ printf "%s@%s" $name $one.digest }}
{{- else }}{{ printf "%s:%s" $name (default (index . 0).Chart.AppVersion $all.tag) }}{{ end }}
{{- end }}

{{/* Somebody else's image: etcd's, the cleaner's. */}}
{{- define "nexus.otherImage" -}}
{{- if .digest }}{{ printf "%s@%s" .repository .digest }}{{ else }}{{ printf "%s:%s" .repository .tag }}{{ end }}
{{- end }}

{{/* What the "restricted" standard of pod security asks for, and a little more. */}}
{{- define "nexus.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "nexus.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* --- etcd, ours or another --- */}}
{{- define "nexus.etcd.headless" -}}
{{ include "nexus.part" (list . "etcd") }}-headless
{{- end }}

{{- define "nexus.etcd.scheme" -}}
{{- if .Values.etcd.tls.enabled }}https{{ else }}http{{ end }}
{{- end }}

{{- define "nexus.etcd.endpoints" -}}
{{- if .Values.etcd.enabled }}
{{- $urls := list }}
{{- range $i := until (int .Values.etcd.replicaCount) }}
{{- $urls = append $urls (printf "%s://%s-%d.%s.%s.svc:2379" (include "nexus.etcd.scheme" $) (include "nexus.part" (list $ "etcd")) $i (include "nexus.etcd.headless" $) $.Release.Namespace) }}
{{- end }}
{{- join "," $urls }}
{{- else }}
{{- join "," .Values.etcd.external.endpoints }}
{{- end }}
{{- end }}

{{/* The Secret with which Nexus shows who it is; empty: plain text. */}}
{{- define "nexus.etcd.clientSecret" -}}
{{- if not .Values.etcd.enabled }}{{ .Values.etcd.external.tlsSecret }}
{{- else if .Values.etcd.tls.enabled }}
{{- if .Values.etcd.tls.certManager.enabled }}{{ include "nexus.part" (list . "etcd") }}-client-tls
{{- else }}{{ required "etcd.tls.clientSecret is needed: etcd.tls.enabled without certManager" .Values.etcd.tls.clientSecret }}{{ end }}
{{- end }}
{{- end }}

{{- define "nexus.etcd.serverSecret" -}}
{{- if .Values.etcd.tls.certManager.enabled }}{{ include "nexus.part" (list . "etcd") }}-server-tls
{{- else }}{{ required "etcd.tls.serverSecret is needed: etcd.tls.enabled without certManager" .Values.etcd.tls.serverSecret }}{{ end }}
{{- end }}

{{- define "nexus.etcd.quota" -}}
{{- if .Values.etcd.enabled }}{{ int64 .Values.etcd.quotaBytes }}{{ else }}{{ int64 .Values.etcd.external.quotaBytes }}{{ end }}
{{- end }}

{{/* Environment that every role has: (list $ "STREAMER_ID"). Certificates are files. */}}
{{- define "nexus.env" -}}
{{- $ := index . 0 }}
- name: {{ index . 1 }}
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
{{- if and (not $.Values.etcd.enabled) $.Values.etcd.external.authSecret }}
- name: ETCD_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $.Values.etcd.external.authSecret }}, key: username}}
- name: ETCD_PASSWORD_FILE
  value: /etc/nexus/etcd-auth/password
{{- end }}
{{- if include "nexus.etcd.clientSecret" $ }}
- name: ETCD_CA_FILE
  value: /etc/nexus/etcd-tls/ca.crt
{{- if or $.Values.etcd.enabled (not $.Values.etcd.external.caOnly) }}
- name: ETCD_CERT_FILE
  value: /etc/nexus/etcd-tls/tls.crt
- name: ETCD_KEY_FILE
  value: /etc/nexus/etcd-tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- define "nexus.mounts" -}}
{{- if include "nexus.etcd.clientSecret" . }}
- {name: etcd-tls, mountPath: /etc/nexus/etcd-tls, readOnly: true}
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.etcd.external.authSecret }}
- {name: etcd-auth, mountPath: /etc/nexus/etcd-auth, readOnly: true}
{{- end }}
{{- end }}

{{- define "nexus.volumes" -}}
{{- with include "nexus.etcd.clientSecret" . }}
- name: etcd-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if and (not .Values.etcd.enabled) .Values.etcd.external.authSecret }}
- name: etcd-auth
  secret:
    secretName: {{ .Values.etcd.external.authSecret }}
    defaultMode: 0440
    items: [{key: password, path: password}]
{{- end }}
{{- end }}

{{/* The head of a pod's spec: (list $ "nexus-gateway" .Values.nexusGateway). */}}
{{- define "nexus.pod" -}}
{{- $ := index . 0 }}
{{- $part := index . 1 }}
{{- $values := index . 2 }}
serviceAccountName: {{ include "nexus.serviceAccount" $ }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ default 30 $values.terminationGracePeriodSeconds }}
securityContext:
  {{- include "nexus.podSecurity" $ | nindent 2 }}
{{- with $.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- else if hasKey $values "topologySpreadConstraints" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "nexus.selector" (list $ $part) | nindent 8 }}
{{- end }}
{{- end }}

{{/* Labels and annotations of a pod: (list $ "nexus-gateway" .Values.nexusGateway). */}}
{{- define "nexus.podMeta" -}}
{{- $ := index . 0 }}
{{- $values := index . 2 }}
labels:
  {{- include "nexus.labels" (list $ (index . 1)) | nindent 2 }}
  {{- with $values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  # A changed configuration is a new pod.
  checksum/config: {{ include (print $.Template.BasePath "/configmap.yaml") $ | sha256sum }}
  {{- with $values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}

{{/* Alive: its loop turns, whatever etcd does. Ready: it can work. (scheme of the port) */}}
{{- define "nexus.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http, scheme: {{ . }}}
  periodSeconds: 2
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: http, scheme: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http, scheme: {{ . }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}
