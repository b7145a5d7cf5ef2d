# shellcheck shell=bash
# The control plane, on the machine `control`. Sourced, not run.

logs_of() { echo "$run/machines/$1/log/$2"; }

start_etcd() {
    start_on control etcd "$(program etcd)" --data-dir "$run/machines/control/etcd" --log-level warn \
        --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
    await "$etcd_within" etcd "$(logs_of control etcd)" \
        on_machine control curl -fsS --max-time 2 http://127.0.0.1:2379/readyz
}

apiserver_ready() { kubectl get --raw /readyz --request-timeout 3s; }

# The audit log tells who asked what of the kinds that Tenure uses; see audit-policy.yaml.
start_apiserver() {
    start_on control kube-apiserver "$(program kube-apiserver)" --etcd-servers http://127.0.0.1:2379 \
        --secure-port "$api_port" --advertise-address "$control_address" --allow-privileged \
        --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --anonymous-auth=false \
        --client-ca-file "$pki/ca.crt" --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
        --kubelet-certificate-authority "$pki/ca.crt" --kubelet-client-certificate "$pki/apiserver-kubelet.crt" \
        --kubelet-client-key "$pki/apiserver-kubelet.key" --kubelet-preferred-address-types InternalIP \
        --requestheader-client-ca-file "$pki/ca.crt" --requestheader-allowed-names front-proxy \
        --service-cluster-ip-range "$service_range" --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$pki/accounts.key" --service-account-signing-key-file "$pki/accounts.key" \
        --audit-policy-file "$here/audit-policy.yaml" --audit-log-path "$run/audit.log"
}

await_apiserver() { await "$apiserver_within" kube-apiserver "$(logs_of control kube-apiserver)" apiserver_ready; }

start_controllers() {
    start_on control kube-controller-manager "$(program kube-controller-manager)" --leader-elect=false \
        --kubeconfig "$pki/controller-manager.kubeconfig" --bind-address 127.0.0.1 \
        --authentication-kubeconfig "$pki/controller-manager.kubeconfig" \
        --authorization-kubeconfig "$pki/controller-manager.kubeconfig" \
        --service-account-private-key-file "$pki/accounts.key" --root-ca-file "$pki/ca.crt" \
        --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
        --use-service-account-credentials \
        --node-monitor-grace-period "$node_grace" --node-monitor-period "$node_looked_at"
    start_on control kube-scheduler "$(program kube-scheduler)" --leader-elect=false \
        --kubeconfig "$pki/scheduler.kubeconfig" --bind-address 127.0.0.1 \
        --authentication-kubeconfig "$pki/scheduler.kubeconfig" --authorization-kubeconfig "$pki/scheduler.kubeconfig"
}

# A loopback port of this computer that nobody listens on.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    fail "no loopback port from 20000 to 30000 is free"
}

# The API server's way to this computer: it listens in a network of its own, so loopback here is joined to it by a
# unix socket, with one socat on each side.
start_forwarder() {
    local port=$1 socket="$run/api.socket"
    start_on control forwarder socat "UNIX-LISTEN:$socket,fork,mode=600" "TCP:$control_address:$api_port"
    await "$machine_within" "the forwarder" "$(logs_of control forwarder)" test -S "$socket"
    setsid socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr" "UNIX-CONNECT:$socket" \
        >"$run/forwarder.log" 2>&1 </dev/null 9>&- &
    cut -d' ' -f1,22 "/proc/$!/stat" >"$run/forwarder"
    disown
}

# With all connections: each is a process of the same session.
stop_forwarder() {
    local pid started
    read -r pid started <"$run/forwarder" || return 0
    [[ $(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null) == "$started" ]] || return 0
    kill -KILL -- "-$pid" 2>/dev/null || true
}
