//! Connections: TCP, TLS where wanted, HTTP/1.1; and their sudden end, as a fault or while the BMC restarts.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

use super::account::Accounts;
use super::certificate::self_signed;
use super::control::Controls;
use super::door::Door;
use super::service::Service;
use crate::error::{Kind, OrFail, Result};

/// A BMC has few connections to give.
const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const AWAY_TICK: Duration = Duration::from_millis(20);

/// Listens until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    /// DER of the certificate; `None` without TLS.
    pub certificate: Option<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(
        address: SocketAddr,
        tls: bool,
        service: Arc<dyn Service>,
        controls: Arc<Controls>,
        accounts: Arc<Accounts>,
    ) -> Result<Self> {
        let failed = || format!("cannot listen on {address}");
        let listener = TcpListener::bind(address).await.or_fail(Kind::Config, "lab.redfish", failed)?;
        let address = listener.local_addr().or_fail(Kind::Config, "lab.redfish", failed)?;
        let (acceptor, certificate) = match tls {
            true => {
                let (acceptor, certificate) = acceptor(address)?;
                (Some(acceptor), Some(certificate))
            }
            false => (None, None),
        };
        let door = Arc::new(Door::new(service, controls, accounts));
        let task = tokio::spawn(accept(listener, acceptor, door));
        Ok(Self { address, certificate, task })
    }

    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

fn acceptor(address: SocketAddr) -> Result<(TlsAcceptor, Vec<u8>)> {
    let made = self_signed("Labworks BMC", address.ip())?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let failed = || "cannot set up TLS";
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.or_fail(Kind::Internal, "lab.redfish", failed)?.with_no_client_auth();
    let chain = vec![CertificateDer::from(made.der.clone())];
    let config = config.with_single_cert(chain, PrivatePkcs8KeyDer::from(made.pkcs8).into());
    let config = config.or_fail(Kind::Internal, "lab.redfish", failed)?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.der))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, door: Arc<Door>) {
    // Connections end with the server.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(AWAY_TICK).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if door.controls().is_away() || connections.len() >= MAX_CONNECTIONS {
            reset(&stream);
            continue;
        }
        let _ = stream.set_nodelay(true);
        let (acceptor, door) = (acceptor.clone(), door.clone());
        connections.spawn(async move {
            match acceptor {
                None => serve(stream, door).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                        serve(stream, door).await;
                    }
                }
            }
        });
    }
}

/// Closing it from now on sends RST, not FIN.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

type Answering = Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>;

async fn serve(stream: impl Stream, door: Arc<Door>) {
    let cut = Arc::new(Notify::new());
    let answer = {
        let (door, cut) = (door.clone(), cut.clone());
        service_fn(move |request: Request<Incoming>| -> Answering {
            let (door, cut) = (door.clone(), cut.clone());
            Box::pin(async move {
                match door.answer(request).await {
                    Some(response) => Ok(response),
                    None => {
                        cut.notify_one();
                        pending().await
                    }
                }
            })
        })
    };
    let mut connection = http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        _ = Pin::new(&mut connection) => return,
        () = cut.notified() => {}
        () = away(door.controls()) => {}
    }
    reset(connection.into_parts().io.into_inner().tcp());
}

async fn away(controls: &Controls) {
    while !controls.is_away() {
        tokio::time::sleep(AWAY_TICK).await;
    }
}
