# shellcheck shell=bash
# One authority for everything, and a kubeconfig for each client. The keys live as long as the run. Sourced, not run.

# A run is a matter of hours; the authority need not outlive a forgotten one by much.
valid_days=30
pki="$run/certificates"
# Certificates are valid since then, in seconds before now: a replica whose clock is an hour slow has to accept them.
valid_since=7200

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1" 2>/dev/null; }

# openssl takes a start of validity for its own small authority only, which needs a store; so it is told another time.
openssl_then() { LD_PRELOAD=$skew_library SKEW_SECONDS=-$valid_since openssl "$@"; }

make_authority() {
    mkdir -p "$pki"
    build_skew
    new_key "$pki/ca.key"
    openssl_then req -x509 -new -key "$pki/ca.key" -days "$valid_days" -subj /CN=tenure-test-cluster -out "$pki/ca.crt"
    # What the API server signs service account tokens with.
    new_key "$pki/accounts.key"
}

# certificate FILE SUBJECT [ADDRESSES]: for a client, and for a server when it has addresses.
certificate() {
    local file="$pki/$1" subject=$2 addresses=${3:-}
    new_key "$file.key"
    {
        echo "keyUsage=digitalSignature"
        echo "extendedKeyUsage=clientAuth${addresses:+,serverAuth}"
        [[ -z $addresses ]] || echo "subjectAltName=$addresses"
    } >"$file.extensions"
    openssl req -new -key "$file.key" -subj "$subject" |
        openssl_then x509 -req -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days "$valid_days" \
            -extfile "$file.extensions" -out "$file.crt" 2>/dev/null
}

# For what stands between some pods and the API server, on the machine `outside`. Sets `front_certificate` and `front_key`; made
# once in a run.
make_front_certificate() {
    # shellcheck disable=SC2034 # used by those that call it
    front_certificate="$pki/front.crt" front_key="$pki/front.key"
    [[ ! -f $pki/front.crt ]] || return 0
    build_skew
    certificate front /CN=front "IP:$outside_address"
}

# kubeconfig_for CERTIFICATE SERVER FILE: everything inside the file, so that it can be handed on.
kubeconfig_for() {
    (umask 077 && cat >"$3") <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
- name: tenure
  cluster: {server: "$2", certificate-authority-data: "$(base64 -w0 <"$pki/ca.crt")"}
users:
- name: $1
  user: {client-certificate-data: "$(base64 -w0 <"$pki/$1.crt")", client-key-data: "$(base64 -w0 <"$pki/$1.key")"}
contexts:
- name: tenure
  context: {cluster: tenure, user: $1, namespace: default}
current-context: tenure
KUBECONFIG
}

make_certificates() {
    local node here_port=$1 inside="https://$control_address:$api_port"
    make_authority
    certificate apiserver /CN=kube-apiserver \
        "IP:127.0.0.1,IP:$control_address,IP:$first_service,DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes,DNS:localhost"
    certificate apiserver-kubelet /O=system:masters/CN=apiserver-kubelet
    certificate admin /O=system:masters/CN=admin
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate proxy /CN=system:kube-proxy
    # The first is for this computer, the second for what runs on the machines.
    kubeconfig_for admin "https://127.0.0.1:$here_port" "$kubeconfig"
    kubeconfig_for admin "$inside" "$run/kubeconfig.outside"
    kubeconfig_for controller-manager "$inside" "$pki/controller-manager.kubeconfig"
    kubeconfig_for scheduler "$inside" "$pki/scheduler.kubeconfig"
    kubeconfig_for proxy "$inside" "$pki/proxy.kubeconfig"
    for node in "${nodes[@]}"; do
        certificate "$node" "/O=system:nodes/CN=system:node:$node" "IP:$(address_of "$node"),DNS:$node"
        kubeconfig_for "$node" "$inside" "$pki/$node.kubeconfig"
    done
}
