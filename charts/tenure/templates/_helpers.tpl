{{/* The name of all namespaced objects, at most 52 characters: pods add 11. */}}
{{- define "tenure.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "tenure.fullname" -}}
{{- $name := include "tenure.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | replace "." "-" | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* The name of cluster-scoped objects of RBAC. The colons keep namespace and release apart: neither can contain one. */}}
{{- define "tenure.clusterName" -}}
{{- printf "%s:%s:%s" .Chart.Name .Release.Namespace .Release.Name }}
{{- end }}

{{- define "tenure.serviceAccountName" -}}
{{- default (ternary (include "tenure.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* In a namespace that is not the release's own, a Lease may lie beside that of a release of the same name: the namespace is
put before it. A dot parts them, because neither can contain one. */}}
{{- define "tenure.leaseName" -}}
{{- $name := include "tenure.fullname" . }}
{{- if ne (include "tenure.leaseNamespace" .) .Release.Namespace }}
{{- $name = printf "%s.%s" .Release.Namespace $name }}
{{- end }}
{{- default $name .Values.leaderElection.leaseName }}
{{- end }}

{{- define "tenure.leaseNamespace" -}}
{{- default .Release.Namespace .Values.leaderElection.leaseNamespace }}
{{- end }}

{{- define "tenure.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}
{{- printf "%s@%s" $image.repository $image.digest }}
{{- else }}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* By toYaml, here and wherever a name is written: it quotes what would be read as a number, such as a namespace `456`. */}}
{{- define "tenure.selectorLabels" -}}
{{- dict "app.kubernetes.io/name" (include "tenure.name" .) "app.kubernetes.io/instance" .Release.Name | toYaml }}
{{- end }}

{{/* Of the pod of `helm test`: not those of the replicas, which the Service would find. */}}
{{- define "tenure.testLabels" -}}
{{- dict "app.kubernetes.io/name" (printf "%s-test" (include "tenure.name" .)) "app.kubernetes.io/instance" .Release.Name | toYaml }}
{{- end }}

{{/* The labels of an object: (dict "root" $ "labels" … "selector" … "pod" …), all but root optional. Each key once: what is given
for the object wins over commonLabels, and nothing over what selects pods. A pod has no version of the chart, because a
change of the chart alone would replace every pod then. */}}
{{- define "tenure.labels" -}}
{{- $root := .root }}
{{- $all := dict
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/component" "controller"
  "app.kubernetes.io/part-of" "tenure"
  "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- if not .pod }}
{{- $_ := set $all "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
{{- end }}
{{- $selector := include (default "tenure.selectorLabels" .selector) $root | fromYaml }}
{{- range list $root.Values.commonLabels .labels $selector }}
{{- range $key, $value := . }}
{{- $_ := set $all $key $value }}
{{- end }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{/* The metadata that all namespaced objects share: (dict "root" $ "name" … "namespace" … "labels" … "annotations" …), all but root optional. */}}
{{- define "tenure.metadata" -}}
{{- $root := .root -}}
name: {{ default (include "tenure.fullname" $root) .name | toYaml }}
{{- if not .clusterScoped }}
namespace: {{ default $root.Release.Namespace .namespace | toYaml }}
{{- end }}
labels:
  {{- include "tenure.labels" (dict "root" $root "labels" .labels) | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) (default (dict) $root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The name of a Role. In a namespace that is not the release's own it may lie beside that of another release. */}}
{{- define "tenure.roleName" -}}
{{- $name := eq .namespace .root.Release.Namespace | ternary (include "tenure.fullname" .root) (include "tenure.clusterName" .root) }}
{{- printf (eq .namespace .root.Release.Namespace | ternary "%s-%s" "%s:%s") $name .for }}
{{- end }}

{{/* What the replicas may do with jobs, Secrets and Events: the same list in a Role and in a ClusterRole. */}}
{{- define "tenure.jobRules" -}}
- apiGroups: [tenure.dev]
  resources: [periodicjobs]
  verbs: [get, list, watch]
- apiGroups: [tenure.dev]
  resources: [periodicjobs/status]
  verbs: [patch]
{{- if .Values.rbac.secrets }}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- if .Values.rbac.jobs }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [create, delete, get, list, watch]
{{- end }}
{{ include "tenure.eventRules" . }}
{{- end }}

{{- define "tenure.eventRules" -}}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, get, patch]
{{- end }}

{{- define "tenure.subjects" -}}
- kind: ServiceAccount
  name: {{ include "tenure.serviceAccountName" . | toYaml }}
  namespace: {{ .Release.Namespace | toYaml }}
{{- end }}

{{/* The affinity as it is given, but for the labelSelector of the replicas in each term of podAntiAffinity that has none. */}}
{{- define "tenure.affinity" -}}
{{- $affinity := deepCopy (default (dict) .Values.affinity) }}
{{- $selector := dict "matchLabels" (include "tenure.selectorLabels" . | fromYaml) }}
{{- $terms := default (dict) $affinity.podAntiAffinity }}
{{- $all := default (list) $terms.requiredDuringSchedulingIgnoredDuringExecution }}
{{- range $terms.preferredDuringSchedulingIgnoredDuringExecution }}
{{- $all = append $all .podAffinityTerm }}
{{- end }}
{{- range $all }}
{{- if not (hasKey . "labelSelector") }}
{{- $_ := set . "labelSelector" $selector }}
{{- end }}
{{- end }}
{{- toYaml $affinity }}
{{- end }}

{{/* The arguments of the program. One that a value sets already is refused in extraArgs: the program takes each only once. */}}
{{- define "tenure.args" -}}
{{- $args := include "tenure.ownArgs" . | fromYamlArray }}
{{- $own := dict }}
{{- range $args }}
{{- $_ := set $own (regexFind "^--[a-z-]+" .) true }}
{{- end }}
{{- $extra := default (list) .Values.extraArgs }}
{{- range $extra }}
{{- $flag := regexFind "^--[a-z-]+" . }}
{{- if and (hasKey $own $flag) (not (has $flag (list "--adopt-from" "--egress-allow" "--resolve"))) }}
{{- fail (printf "extraArgs: %s is there already, from a value of its own; set that value instead" $flag) }}
{{- end }}
{{- end }}
{{- concat $args $extra | toYaml }}
{{- end }}

{{- define "tenure.ownArgs" -}}
{{- $election := .Values.leaderElection -}}
- run
{{- if eq .Values.watchNamespace .Release.Namespace }}
- --watch-namespace=$(POD_NAMESPACE)
{{- else if .Values.watchNamespace }}
- --watch-namespace={{ .Values.watchNamespace }}
{{- end }}
{{- with .Values.class }}
- --class={{ . }}
{{- end }}
{{- range .Values.adoptFrom }}
- --adopt-from={{ . }}
{{- end }}
- --leader-elect-resource-name={{ include "tenure.leaseName" . }}
{{- with $election.leaseNamespace }}
- --leader-elect-resource-namespace={{ . }}
{{- end }}
- --leader-elect-lease-duration={{ $election.leaseDuration }}
{{- with $election.renewDeadline }}
- --leader-elect-renew-deadline={{ . }}
{{- end }}
- --leader-elect-retry-period={{ $election.retryPeriod }}
- --leader-elect-stop-margin={{ $election.stopMargin }}
- --foreign-grace={{ $election.foreignGrace }}
- --catch-up-rate={{ int .Values.jobs.catchUpRate }}
- --max-clock-skew={{ .Values.jobs.maxClockSkew }}
{{- range .Values.jobs.egressAllow }}
- {{ printf "--egress-allow=%s" . | quote }}
{{- end }}
{{- range .Values.jobs.resolve }}
- {{ printf "--resolve=%s" . | quote }}
{{- end }}
{{- $host := contains ":" .Values.admin.host | ternary (printf "[%s]" .Values.admin.host) .Values.admin.host }}
- {{ printf "--admin-address=%s:%d" $host (int .Values.admin.port) | quote }}
- --termination-grace-period={{ int .Values.terminationGracePeriodSeconds }}s
- --pod-uid=$(POD_UID)
- --lock-directory=/run/tenure
- --log-format={{ .Values.log.format }}
- {{ printf "--log-level=%s" .Values.log.level | quote }}
{{- end }}
