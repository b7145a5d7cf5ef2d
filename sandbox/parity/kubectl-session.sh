#!/usr/bin/env bash
# Runs one session of kubectl against the server of $KUBECONFIG and prints each command with its output and exit code.
# What differs from run to run (ages, uids, versions, instants) is replaced, so that two servers' sessions can be
# compared line by line.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kubectl=$("$here/kubectl.sh")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Nothing is taken over from the user's own kubectl.
export HOME="$folder" TMPDIR="$folder" KUBECTL_KUBERC=false

kubectl() {
    echo "\$ kubectl $*"
    timeout 60 "$kubectl" --cache-dir "$folder/cache" "$@" 2>&1
    echo "exit code $?"
}

# apply NAME [LINE...]: applies a manifest of these lines, or what stands on standard input.
apply() {
    if (($# > 1)); then printf '%s\n' "${@:2}"; else cat; fi >"$folder/$1.yaml"
    echo "\$ kubectl apply -f $1.yaml"
    (cd "$folder" && timeout 60 "$kubectl" --cache-dir "$folder/cache" apply -f "$1.yaml" 2>&1)
    echo "exit code $?"
}

# widget MANIFEST NAME SPEC
widget() {
    apply "$1" 'apiVersion: conformance.example/v1alpha1' 'kind: Widget' "metadata: {name: $2, namespace: session}" \
        "spec: $3"
}

session() {
    apply widgets <"$here/../tests/conformance/fixtures/widgets.yaml"
    kubectl wait --for=condition=Established --timeout=30s crd/widgets.conformance.example
    apply namespace 'apiVersion: v1' 'kind: Namespace' 'metadata: {name: session}'
    "$kubectl" config set-context --current --namespace session >/dev/null
    # A server may take a moment until the discovery knows a new kind.
    for _ in {1..50}; do
        timeout 60 "$kubectl" --cache-dir "$folder/cache" get widgets >/dev/null 2>&1 && break
        sleep 0.2
    done
    kubectl get widgets
    widget a a '{schedule: "* * * * *"}'
    widget a a '{schedule: "* * * * *"}'
    widget a a '{schedule: "* * * * *", replicas: 3, port: 80}'
    widget b b '{interval: 5m, suspend: true}'
    widget wrong-rule wrong '{schedule: x, interval: 1s}'
    widget wrong-value wrong '{schedule: x, color: pink}'
    widget wrong-name wrong '{schedule: x, bogus: 1}'
    kubectl get widgets
    kubectl get widgets -o wide
    kubectl get wg a --show-labels
    kubectl get toys
    kubectl get widgets -A
    kubectl get widgets -o name
    kubectl get widget a -o yaml
    kubectl get widget a -o 'jsonpath={.spec.replicas}{"\n"}'
    kubectl get widgets --sort-by=.spec.replicas
    kubectl get widget missing
    kubectl get nonsense
    kubectl patch widget a --type=merge -p '{"spec":{"replicas":4}}'
    kubectl patch widget a --type=merge -p '{"spec":{"replicas":4}}'
    kubectl patch widget a --type=merge -p '{"spec":{"replicas":44}}'
    kubectl patch widget a --type=json -p '[{"op":"test","path":"/spec/replicas","value":9}]'
    kubectl patch widget a -p '{"spec":{"replicas":5}}'
    kubectl patch widget a --subresource=status --type=merge -p '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    kubectl wait --for=condition=Ready --timeout=5s widget/a
    kubectl wait --for=jsonpath='{.spec.replicas}'=4 --timeout=5s widget/a
    kubectl label widget a app=one
    kubectl get widgets -l app=one
    kubectl get widgets --field-selector metadata.name=b
    kubectl get widgets --field-selector spec.color=red
    kubectl annotate widget a example.dev/trigger=now
    kubectl annotate widget a example.dev/trigger=again
    kubectl annotate --overwrite widget a example.dev/trigger=again
    KUBE_EDITOR="sed -i 's/replicas: 4/replicas: 6/'" kubectl edit widget a
    KUBE_EDITOR="sed -i 's/replicas: 6/replicas: many/'" kubectl edit widget a
    kubectl describe widget a
    kubectl explain widgets
    kubectl explain widgets.spec.http
    kubectl explain widgets.spec.nonsense
    kubectl api-resources --api-group=conformance.example
    apply lease 'apiVersion: coordination.k8s.io/v1' 'kind: Lease' 'metadata: {name: a}' 'spec: {holderIdentity: me}'
    apply lease 'apiVersion: coordination.k8s.io/v1' 'kind: Lease' 'metadata: {name: a}' 'spec: {holderIdentity: you}'
    kubectl get leases
    kubectl describe lease a
    kubectl explain lease.spec.holderIdentity
    apply secret 'apiVersion: v1' 'kind: Secret' 'metadata: {name: a}' 'stringData: {token: secret}'
    kubectl get secret a -o 'jsonpath={.data.token}{"\n"}'
    apply event 'apiVersion: v1' 'kind: Event' 'metadata: {name: a.1}' 'reason: Started' 'message: it started' 'type: Normal' \
        'involvedObject: {apiVersion: conformance.example/v1alpha1, kind: Widget, name: a, namespace: session}'
    kubectl get events
    kubectl events --for widget/a
    kubectl delete widget a
    kubectl delete widget a
    kubectl delete widgets --all
    kubectl get widgets
}

# job NAME SPEC-FIELDS ACTION-FIELDS: applies a PeriodicJob of the definition under deploy/crds.
job() {
    apply "job-$1" 'apiVersion: tenure.dev/v1alpha1' 'kind: PeriodicJob' "metadata: {name: $1, namespace: session}" \
        "spec: {$2, http: {$3}}"
}

# The repository's own definitions: what users write, and what they are told about it.
definitions() {
    for file in "$here"/../../deploy/crds/*.tenure.dev.yaml; do
        apply "$(basename "$file" .yaml)" <"$file"
    done
    kubectl wait --for=condition=Established --timeout=30s crd/periodicjobs.tenure.dev
    for _ in {1..50}; do
        timeout 60 "$kubectl" --cache-dir "$folder/cache" get periodicjobs >/dev/null 2>&1 && break
        sleep 0.2
    done
    local url='url: "https://example.com/"'
    job hourly 'schedule: "@hourly"' "$url"
    job hourly 'schedule: "@hourly", suspend: true' "$url"
    job fast 'interval: 200ms, concurrencyPolicy: Allow' "$url, method: PUT"
    kubectl get periodicjobs
    kubectl get tenure -o wide
    kubectl get periodicjob hourly -o yaml
    kubectl describe periodicjob hourly
    kubectl explain periodicjob.spec
    kubectl explain periodicjob.status
    kubectl patch periodicjob hourly --subresource=status --type=json -p '[{"op":"add","path":"/status/mark","value":""}]'
    job wrong-both 'schedule: "@hourly", interval: 1s' "$url"
    job wrong-neither 'suspend: true' "$url"
    job wrong-interval 'interval: 99ms' "$url"
    job wrong-duration 'interval: soon' "$url"
    job wrong-zone 'interval: 1s, timeZone: Europe/Berlin' "$url"
    job wrong-policy 'schedule: "@hourly", concurrencyPolicy: Sometimes' "$url"
    job wrong-name 'schedule: "@hourly", scheduel: x' "$url"
    job wrong-type 'schedule: "@hourly", maxActive: many' "$url"
    job wrong-range 'schedule: "@hourly", maxActive: 0' "$url"
    job wrong-timeout 'schedule: "@hourly", timeout: 1ms' "$url"
    job wrong-retry 'schedule: "@hourly", retry: {initial: 10s, max: 1s}' "$url"
    job wrong-retry-max 'schedule: "@hourly", retry: {max: 48h}' "$url"
    job wrong-url 'schedule: "@hourly"' 'url: "ftp://example.com"'
    job wrong-no-url 'schedule: "@hourly"' 'method: GET'
    job wrong-bodies 'schedule: "@hourly"' "$url, body: a, bodyTemplate: b"
    job wrong-get-body 'schedule: "@hourly"' "$url, method: GET, body: a"
    job wrong-header 'schedule: "@hourly"' "$url, headers: [{name: tenure-token, value: x}]"
    job wrong-header-value 'schedule: "@hourly"' "$url, headers: [{name: x}]"
    job wrong-auth 'schedule: "@hourly"' "$url, auth: {}"
    job wrong-tls 'schedule: "@hourly"' 'url: "http://example.com/", tls: {ca: x}'
    apply job-no-action 'apiVersion: tenure.dev/v1alpha1' 'kind: PeriodicJob' 'metadata: {name: a}' \
        'spec: {schedule: "@hourly"}'
    kubectl patch periodicjob hourly --type=merge -p '{"spec":{"interval":"1s"}}'
    kubectl patch periodicjob hourly --type=merge -p '{"spec":{"schedule":null,"interval":"1s"}}'
    kubectl get periodicjobs -o name
    kubectl delete periodicjobs --all
}

{ session && definitions; } | sed -E \
    -e 's/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/<uid>/g' \
    -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\.[0-9]+)?Z/<time>/g' \
    -e "s#$folder#<folder>#g" -e 's#kubectl-edit-[0-9]+\.yaml#<edited>#' \
    -e 's/(resourceVersion: |Resource Version: *)"?[0-9]+"?/\1<version>/I' \
    `# The sandbox does not offer server-side apply.` \
    -e 's#, application/apply-patch\+yaml##' \
    -e 's/(^| +)[0-9]+s( +|$)/ <age> /g'
