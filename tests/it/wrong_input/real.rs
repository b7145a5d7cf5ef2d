//! A real API server in place of the sandbox: `make wrong-input` boots one, which is there for these tests alone, and names
//! it in the environment. It has neither nodes nor controllers, and nothing that is read here needs any.
//!
//! A replica reaches it with the rights of an account of its own, and over a forwarder, which can be stopped and started
//! as the sandbox's server can.

use std::{net::SocketAddr, path::Path, time::Duration};

use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        authorization::v1::SubjectAccessReview,
        coordination::v1::Lease,
        core::v1::{Secret, ServiceAccount},
        events::v1::Event,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tenure::api::PeriodicJob;
use tokio::{net::TcpListener, net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::{lab::NAMESPACE, process::DEADLINE};

/// The kubeconfig of an administrator. Without it, the sandbox is taken.
const VARIABLE: &str = "WRONG_INPUT_KUBECONFIG";

/// The account of the replicas, and the names of what gives it its rights.
const ACCOUNT: &str = "tenure";

/// The API server that the environment names.
pub struct RealServer {
    admin: Kubeconfig,
    client: Client,
}

pub fn is_named() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// How the account that a message names is called, here or in the sandbox.
pub fn account() -> String {
    if is_named() { format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}") } else { "sandbox".to_owned() }
}

impl RealServer {
    /// The server as it was before anything was installed. `None` if none is named.
    pub async fn named_by_the_environment() -> Option<Self> {
        let path = std::env::var_os(VARIABLE)?;
        let admin = Kubeconfig::read_from(path).unwrap();
        let config = Config::from_custom_kubeconfig(admin.clone(), &KubeConfigOptions::default()).await.unwrap();
        let real = Self { admin, client: Client::try_from(config).unwrap() };
        real.clean().await;
        Some(real)
    }

    /// A client with every right.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Where it listens, on loopback.
    pub fn address(&self) -> SocketAddr {
        let server = self.admin.clusters[0].cluster.as_ref().and_then(|cluster| cluster.server.as_deref()).unwrap();
        server.strip_prefix("https://").and_then(|address| address.parse().ok()).unwrap()
    }

    /// A kubeconfig of the account, which reaches the server at `address`.
    pub async fn kubeconfig(&self, address: SocketAddr) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), NAMESPACE);
        let asked = TokenRequest::default();
        let given = accounts.create_token_request(ACCOUNT, &PostParams::default(), &asked).await.unwrap();
        let token = given.status.unwrap().token;
        let mut cluster = serde_json::to_value(self.admin.clusters[0].cluster.as_ref()).unwrap();
        cluster["server"] = json!(format!("https://{address}"));
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "real",
            "clusters": [{ "name": "real", "cluster": cluster }],
            "users": [{ "name": ACCOUNT, "user": { "token": token } }],
            "contexts": [{ "name": "real", "context": { "cluster": "real", "user": ACCOUNT, "namespace": NAMESPACE } }],
        })
        .to_string()
    }

    /// The same, as the program reads it.
    pub async fn config(&self, address: SocketAddr) -> Config {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig(address).await).unwrap();
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
    }

    /// A kubeconfig of the account in a folder.
    pub async fn write_kubeconfig(&self, path: &Path, address: SocketAddr) {
        std::fs::write(path, self.kubeconfig(address).await).unwrap();
    }

    /// Grants the account what a replica needs, but for `withheld`, and waits until that holds. Of the Secrets it may
    /// read those that these tests name, but one.
    pub async fn grant(&self, withheld: Option<&str>) {
        let rules = [
            ("coordination.k8s.io", "leases", json!(["create", "get", "update", "watch"])),
            ("tenure.dev", "periodicjobs", json!(["get", "list", "watch"])),
            ("tenure.dev", "periodicjobs/status", json!(["patch"])),
            ("events.k8s.io", "events", json!(["create", "get", "patch"])),
            ("batch", "jobs", json!(["create", "delete", "get", "list", "watch"])),
        ];
        let rule = |(group, resource, verbs): &(&str, &str, Value)| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
        let given = rules.iter().filter(|(_, resource, _)| Some(*resource) != withheld);
        let secrets = json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["absent", "credentials"] });
        let role: ClusterRole = read(json!({
            "metadata": { "name": ACCOUNT },
            "rules": given.map(rule).chain([secrets]).collect::<Vec<_>>(),
        }));
        let roles: Api<ClusterRole> = Api::all(self.client());
        match roles.replace(ACCOUNT, &PostParams::default(), &role).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {
                roles.create(&PostParams::default(), &role).await.unwrap();
            }
            Err(error) => panic!("the rights cannot be granted: {error}"),
        }
        for (group, resource, _) in &rules {
            let expected = Some(*resource) != withheld;
            self.wait_for_right(group, resource, expected).await;
        }
    }

    async fn wait_for_right(&self, group: &str, resource: &str, expected: bool) {
        let (main, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let verb = if subresource.is_empty() { "get" } else { "patch" };
        let review: SubjectAccessReview = read(json!({ "metadata": {}, "spec": {
            "user": account(),
            "resourceAttributes":
                { "group": group, "resource": main, "subresource": subresource, "verb": verb, "namespace": NAMESPACE },
        }}));
        let reviews: Api<SubjectAccessReview> = Api::all(self.client());
        wait_for(&format!("the right on {resource}"), async || {
            let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
            answer.status.is_some_and(|status| status.allowed == expected)
        })
        .await;
    }

    /// Posts the definitions, and waits until they are served.
    pub async fn install_definitions(&self) {
        crate::support::process::install(&self.client).await;
        let jobs: Api<PeriodicJob> = Api::all(self.client());
        wait_for("jobs are served", async || jobs.list(&ListParams::default()).await.is_ok()).await;
    }

    async fn clean(&self) {
        let (client, posted) = (self.client(), PostParams::default());
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for definition in tenure::api::crds().unwrap() {
            remove(&definitions, definition.metadata.name.as_deref().unwrap()).await;
        }
        remove(&Api::<Lease>::namespaced(client.clone(), NAMESPACE), "tenure").await;
        remove(&Api::<Secret>::namespaced(client.clone(), NAMESPACE), "credentials").await;
        let events: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
        events.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        remove(&accounts, ACCOUNT).await;
        accounts.create(&posted, &read(json!({ "metadata": { "name": ACCOUNT } }))).await.unwrap();
        let bindings: Api<ClusterRoleBinding> = Api::all(client);
        remove(&bindings, ACCOUNT).await;
        let binding = read(json!({
            "metadata": { "name": ACCOUNT },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE }],
        }));
        bindings.create(&posted, &binding).await.unwrap();
        self.grant(None).await;
    }
}

/// An object as it is written, which these tests get right.
fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

/// Deletes the object if it is there, and waits until it is gone: some objects are deleted in the background.
async fn remove<K>(api: &Api<K>, name: &str)
where
    K: Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => wait_for(&format!("{name} is gone"), async || api.get_opt(name).await.unwrap().is_none()).await,
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => panic!("{name} cannot be deleted: {error}"),
    }
}

async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Passes connections on to `server` until `shutdown`, which breaks those that are open.
pub async fn forward(listener: TcpListener, server: SocketAddr, shutdown: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let mut near = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        connections.spawn(async move {
            let mut far = TcpStream::connect(server).await.unwrap();
            // That a connection breaks is what the tests want.
            tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
        });
    }
}

/// A folder with a kubeconfig named `kubeconfig` in it: the real server's, or one for nobody at `address`.
pub async fn kubeconfig_in(folder: &TempDir, address: SocketAddr) {
    match RealServer::named_by_the_environment().await {
        Some(real) => real.write_kubeconfig(&folder.path().join("kubeconfig"), real.address()).await,
        None => drop(crate::support::process::kubeconfig(folder.path(), address, "token")),
    }
}
