//! What the replicas live in: the sandbox as their API server, the definitions, the example jobs.

use std::{
    error::Error,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
};
use sandbox::{Sandbox, ServeOptions, new_token};
use tokio_util::sync::CancellationToken;

use super::{folder::StateFolder, ports, replicas};
use crate::{
    api::{self, PeriodicJob},
    tasks::Tasks,
};

/// The sandbox, served, with its kubeconfig files written.
#[derive(Debug)]
pub(super) struct World {
    sandbox: Sandbox,
    address: SocketAddr,
    target: OnceLock<SocketAddr>,
    folder: PathBuf,
    kubeconfig: PathBuf,
}

/// The example jobs.
const MANIFESTS: [&str; 2] = [
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/manifests/heartbeat.yaml")),
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/manifests/flaky.yaml")),
];

impl World {
    pub(super) async fn start(
        folder: &StateFolder,
        replicas: u16,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> Result<Self, Box<dyn Error>> {
        let (sandbox, token) = (Sandbox::new(), new_token());
        let listener = ports::listen(ports::API).await?;
        let address = listener.local_addr()?;
        let kubeconfig = folder.kubeconfig(None);
        Sandbox::write_kubeconfig(&kubeconfig, address, &token)?;
        for number in 0..replicas {
            let name = replicas::name(number);
            Sandbox::write_kubeconfig(&folder.kubeconfig(Some(&name)), address, &format!("{token}.{name}"))?;
        }
        let served = sandbox.clone();
        let serving = async move {
            if let Err(error) = served.serve(ServeOptions { listener, token, shutdown: stop }).await {
                tracing::error!(%error, "The sandbox has ended");
            }
        };
        tasks.spawn("sandbox", serving).detach();
        let folder = folder.path().to_owned();
        Ok(Self { sandbox, address, target: OnceLock::new(), folder, kubeconfig })
    }

    /// Posts the definitions, and the example jobs with the target where it really is.
    pub(super) async fn fill(&self, target: SocketAddr) -> Result<(), Box<dyn Error>> {
        let definitions = Api::<CustomResourceDefinition>::all(self.client());
        for definition in api::crds()? {
            definitions.create(&PostParams::default(), &definition).await?;
        }
        let resource = ApiResource::erase::<PeriodicJob>(&());
        let jobs = Api::<DynamicObject>::namespaced_with(self.client(), "default", &resource);
        let written = SocketAddr::from(([127, 0, 0, 1], ports::TARGET));
        for manifest in MANIFESTS {
            let text = manifest.replace(&format!("http://{written}/"), &format!("http://{target}/"));
            jobs.create(&PostParams::default(), &serde_saphyr::from_str(&text)?).await?;
        }
        self.target.get_or_init(|| target);
        Ok(())
    }

    /// Whether any job shows a run that has ended.
    pub(super) async fn has_recorded_a_run(&self) -> bool {
        let jobs = Api::<PeriodicJob>::all(self.client()).list(&ListParams::default()).await;
        let recorded = |job: &PeriodicJob| job.status.as_ref().is_some_and(|status| !status.last_runs.is_empty());
        jobs.is_ok_and(|jobs| jobs.items.iter().any(recorded))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The target's address, once the jobs name it.
    pub(super) fn target(&self) -> SocketAddr {
        self.target.get().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], ports::TARGET)))
    }

    pub(super) fn folder(&self) -> impl std::fmt::Display {
        self.folder.display()
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A connection without a network: that the sandbox answers over one is for the replicas to find out.
    fn client(&self) -> Client {
        Client::new(self.sandbox.service("dev"), "default")
    }
}
