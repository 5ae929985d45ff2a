//! Delivery through a proxy: a tunnel for `https`, whole URLs for `http`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use pilot_plugin::Delivery;
use pilot_plugin::json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::delivery::{deliver, retry, worker};
use super::events;
use super::receiver::{Receiver, ok};
use super::tls::Authority;

/// base64 of `user:t0ken`.
const CREDENTIALS: &str = "dXNlcjp0MGtlbg==";

/// Makes tunnels for those who know its password, to where they ask.
struct Tunnels {
    address: SocketAddr,
    /// First lines.
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Tunnels {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut tunnels = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let asked = Arc::clone(&shared);
                tunnels.spawn(async move { drop(tunnel(stream, &asked).await) });
            }
        });
        Self { address, asked, task }
    }
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(stream: TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    asked.lock().unwrap().push(head[0].clone());
    if !head.contains(&format!("Proxy-Authorization: Basic {CREDENTIALS}")) {
        return stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    }
    let to = head[0].split(' ').nth(1).unwrap();
    let Ok(mut other) = TcpStream::connect(to).await else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
    };
    stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut other).await?;
    Ok(())
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("127.0.0.1", false);
    let receiver = Receiver::start("127.0.0.1:0", Some(acceptor), |_| ok()).await;
    let proxy = Tunnels::new().await;
    let url = format!("https://{}/hook", receiver.address);
    let tls = json!({ "ca-file": authority.file("ca.pem") });

    let address = format!("http://user:t0ken@{}", proxy.address);
    let known = worker(json!({ "url": url, "tls": tls, "proxy": address }));
    assert_eq!(deliver(&known, &events(10)).await, Delivery::Ack);
    assert!(receiver.numbers().into_iter().eq(1..=10));
    // The proxy sees no URL, and its password is not for the receiver.
    let connect = format!("CONNECT {} HTTP/1.1", receiver.address);
    assert_eq!(*proxy.asked.lock().unwrap(), [connect]);
    assert_eq!(receiver.received()[0].line, "POST /hook HTTP/1.1");
    assert_eq!(receiver.received()[0].header("proxy-authorization"), "");

    let address = format!("http://user:wr0ng@{}", proxy.address);
    let unknown = worker(json!({ "url": url, "tls": tls, "proxy": address }));
    let delivery = deliver(&unknown, &events(1)).await;
    if let Delivery::Retry { reason, .. } = &delivery {
        assert!(!reason.contains("wr0ng"), "{reason}");
    }
    let place = proxy.address.to_string();
    assert_eq!(retry(delivery, &["proxy", &place, "407", "`proxy`"]), (0, None));
    assert_eq!(receiver.received().len(), 10);

    let direct = json!({ "url": url, "tls": tls, "proxy": address, "no-proxy": ["127.0.0.1"] });
    assert_eq!(deliver(&worker(direct), &events(1)).await, Delivery::Ack);
    assert_eq!(proxy.asked.lock().unwrap().len(), 2);

    // The receiver is down, the proxy is not.
    let down = receiver.address.to_string();
    receiver.close().await;
    let address = format!("http://user:t0ken@{}", proxy.address);
    let gone = worker(json!({ "url": url, "tls": tls, "proxy": address }));
    assert_eq!(retry(deliver(&gone, &events(1)).await, &["no tunnel to", &down, "502"]), (0, None));
}

#[tokio::test]
async fn http_asks_the_proxy_for_the_whole_url() {
    // The proxy answers for the receiver, which need not exist.
    let proxy = Receiver::new(|_| ok()).await;
    let worker = worker(json!({
        "url": "http://hooks.example:8080/hook?a=b",
        "proxy": format!("http://user:t0ken@{}", proxy.address),
    }));
    assert_eq!(deliver(&worker, &events(3)).await, Delivery::Ack);
    let received = proxy.received();
    assert_eq!(received[0].line, "POST http://hooks.example:8080/hook?a=b HTTP/1.1");
    assert_eq!(received[0].header("host"), "hooks.example:8080");
    assert_eq!(received[0].header("proxy-authorization"), format!("Basic {CREDENTIALS}"));
    assert_eq!(proxy.numbers(), [1, 2, 3]);

    let place = proxy.address.to_string();
    proxy.close().await;
    retry(deliver(&worker, &events(1)).await, &[]);
    let says = ["cannot connect to proxy", &place];
    assert_eq!(retry(deliver(&worker, &events(1)).await, &says), (0, None));
}
