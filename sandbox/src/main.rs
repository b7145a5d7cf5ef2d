//! The sandbox as a process.

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use sandbox::{Sandbox, ServeOptions, new_token};
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// A small Kubernetes API server in memory, for development and tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen; loopback only. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to write the administrator's kubeconfig.
    #[arg(long, value_name = "PATH")]
    kubeconfig: PathBuf,
    /// A file with the bearer token; without it a random one is used.
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Clients that get a kubeconfig of their own, PATH.NAME, so that faults can be aimed at them.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    clients: Vec<String>,
    /// Exit when standard input is closed, that is when the parent process is gone.
    #[arg(long)]
    until_stdin_closes: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sandbox: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> io::Result<()> {
    let named = |path: &PathBuf, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let token = match &arguments.token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| named(path, error))?.trim().to_owned(),
        None => new_token(),
    };
    let listener = TcpListener::bind(arguments.listen).await?;
    let address = listener.local_addr()?;
    let path = &arguments.kubeconfig;
    Sandbox::write_kubeconfig(path, address, &token).map_err(|error| named(path, error))?;
    for client in &arguments.clients {
        let mut name = path.clone().into_os_string();
        name.push(format!(".{client}"));
        let path = PathBuf::from(name);
        Sandbox::write_kubeconfig(&path, address, &format!("{token}.{client}")).map_err(|error| named(&path, error))?;
    }
    println!("https://{address}");
    let shutdown = CancellationToken::new();
    let sandbox = Sandbox::new();
    let serving = sandbox.serve(ServeOptions { listener, token, shutdown: shutdown.clone() });
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        result = serving => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminated.recv() => Ok(()),
        () = stdin_closed(), if arguments.until_stdin_closes => Ok(()),
    }
}

/// Waits until standard input ends; what comes through it is of no interest.
async fn stdin_closed() {
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 64];
    while matches!(input.read(&mut buffer).await, Ok(count) if count > 0) {}
}
