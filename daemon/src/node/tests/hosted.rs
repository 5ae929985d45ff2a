//! The daemon's platform under the real manager of plugins, with a back-end of
//! this test: a file names its plugin, which answers from another thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use pilot_host::events::Happening;
use pilot_host::{
    Backend, BoxFuture, BoxStream, CallError, Context, Failure, FileKind, Instance, Isolation,
    Limits, Loader, Manager, Platform, PortService, StartError, Stats,
};
use pilot_plugin::{Batch, Delivery, JoinRequest, Manifest, Verdict};

use super::plugins::{ThreadEcho, exchange, thread_echo};
use super::*;
use crate::config::{Config as Settings, Invocation, RawConfig};
use crate::plugins::{DaemonPlatform, EventJournal, PeerBook, PlatformParts, Plugins, Setup};
use crate::state::Store;
use crate::trust::Pins;
use crate::{control, trust};

/// A URL, and the names of the events that came for it.
type Delivered = (String, Vec<String>);

/// Makes plugins of files with `{"name": .., "port": ..}`.
struct FakeLoader {
    delivered: mpsc::Sender<Delivered>,
}

impl Loader for FakeLoader {
    fn open(
        &self,
        _: FileKind,
        path: &std::path::Path,
        _: Isolation,
        _: &Limits,
    ) -> Result<Arc<dyn Backend>, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let says: Value = serde_json::from_str(&text).map_err(|e| format!("{path:?}: {e}"))?;
        let name = says["name"].as_str().ok_or("it has no name")?;
        let mut manifest = Manifest::new(name, "1.0.0");
        match says["port"].as_u64().and_then(|port| u16::try_from(port).ok()) {
            Some(port) => manifest = manifest.service(name, &[port]),
            None => {
                manifest = manifest.sink("webhook");
                manifest.config_schema =
                    Some(json!({"type": "object", "properties": {"url": {"type": "string"}}}));
            }
        }
        Ok(Arc::new(Fake { manifest, delivered: self.delivered.clone() }))
    }
}

struct Fake {
    manifest: Manifest,
    delivered: mpsc::Sender<Delivered>,
}

impl Backend for Fake {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn start(&self, config: &Value, _: Context) -> Result<Arc<dyn Instance>, StartError> {
        let url = config["url"].as_str().unwrap_or_default().to_owned();
        if url.ends_with("/refused") {
            return Err(StartError::Refused(format!("{url} is not to be used")));
        }
        Ok(Arc::new(FakeInstance {
            echo: thread_echo(false).0,
            url,
            delivered: self.delivered.clone(),
            drained: AtomicBool::new(false),
        }))
    }
}

struct FakeInstance {
    echo: Arc<ThreadEcho>,
    url: String,
    delivered: mpsc::Sender<Delivered>,
    drained: AtomicBool,
}

impl Instance for FakeInstance {
    fn open(&self, stream: BoxStream) {
        self.echo.open(stream);
    }

    fn datagram(&self, _: SocketAddress, _: u16, _: Bytes) {}

    fn validate(&self, _: JoinRequest) -> BoxFuture<Result<Verdict, Failure>> {
        Box::pin(async { Err(Failure::Unsupported) })
    }

    fn deliver(&self, batch: Batch) -> BoxFuture<Result<Delivery, Failure>> {
        let names = batch.events().map(|e| e.event).collect();
        // The test may have ended.
        let _ = self.delivered.send((self.url.clone(), names));
        Box::pin(async { Ok(Delivery::Ack) })
    }

    fn drain(&self, _: Duration) {
        self.drained.store(true, Ordering::Release);
    }

    fn stats(&self) -> Stats {
        Stats { ended: self.drained.load(Ordering::Acquire), ..Stats::default() }
    }
}

/// A node's plugins, shipped ones in a folder of the test.
struct Hosted {
    plugins: Plugins,
    manager: Manager,
    platform: Arc<DaemonPlatform>,
    journal: EventJournal,
    delivered: mpsc::Receiver<Delivered>,
    shipped: tempfile::TempDir,
}

fn settings(args: &[&str]) -> Settings {
    let args = args.iter().map(|a| (*a).to_owned());
    let Ok(Invocation::Run(raw)) = RawConfig::load(args, |_| None) else { panic!() };
    Settings::try_from(&raw).unwrap()
}

async fn host(node: &TestNode, files: &[(&str, Value)]) -> Hosted {
    let shipped = tempfile::tempdir().unwrap();
    for (name, says) in files {
        std::fs::write(shipped.path().join(name), says.to_string()).unwrap();
    }
    let data = node.folder.path();
    for folder in ["plugins", "scripts"] {
        std::fs::create_dir(data.join(folder)).unwrap();
    }
    let path = shipped.path().to_str().unwrap();
    let config = settings(&["-plugin-path", path, "-data", data.to_str().unwrap()]);
    let journal = EventJournal::open(&data.join("events")).unwrap();
    let store = Store::load(&data.join("state.json")).unwrap();
    // Nobody answers for registry and trust; nothing here asks them.
    let (control, _) = control::channel();
    let (trust, _) = trust::channel(control.clone());
    let plugins = Plugins::default();
    let platform = DaemonPlatform::new(PlatformParts {
        node: node.handle.clone(),
        control,
        trust,
        peers: PeerBook::new(Pins::default(), store),
        events: journal.events(),
        plugins: plugins.clone(),
        data: data.to_owned(),
    });
    let (sender, delivered) = mpsc::channel();
    let loader = Arc::new(FakeLoader { delivered: sender });
    let setup = Setup::new(&config, None, &[1001]);
    let host = Arc::clone(&platform) as Arc<dyn Platform>;
    let started = setup.start(loader, journal.clone(), host, &plugins);
    tokio::time::timeout(STEP, started).await.unwrap().unwrap();
    let manager = plugins.manager().unwrap().clone();
    Hosted { plugins, manager, platform, journal, delivered, shipped }
}

#[test]
fn shipped_plugins_and_dropped_in_scripts_serve() {
    run_test(async {
        let (a, b) = pair().await;
        let hosted = host(&b, &[("echo.lua", json!({"name": "echo", "port": 2007}))]).await;
        exchange(&a, b.at(2007), &pattern(1 << 20, 1)).await;
        let all = hosted.plugins.describe("").unwrap();
        let state = |name: &str| {
            let list = all["plugins"].as_array().unwrap();
            list.iter().find(|p| p["name"] == name).map(|p| p["state"].clone())
        };
        assert_eq!(state("echo"), Some(json!("running")));
        assert_ne!(state("http"), Some(json!("running")), "its file is not there");
        assert_eq!(state("data-exchange"), None, "the daemon itself serves that port");
        assert_eq!(hosted.plugins.describe("echo").unwrap()["generation"], 1);
        let refused = hosted.plugins.describe("ecko").unwrap_err().text;
        assert!(refused.contains("\"ecko\"") && refused.contains("echo"), "{refused}");

        let scripts = b.folder.path().join("scripts");
        let mine = json!({"name": "mine", "port": 2008}).to_string();
        std::fs::write(scripts.join("mine.lua"), mine).unwrap();
        hosted.plugins.reload().await.unwrap();
        exchange(&a, b.at(2008), b"hello").await;

        let mut agent = b.client().await;
        agent.bind(3000).await;
        let taken = json!({"name": "taken", "port": 3000}).to_string();
        std::fs::write(scripts.join("taken.lua"), taken).unwrap();
        hosted.plugins.reload().await.unwrap();
        let taken = hosted.plugins.describe("taken").unwrap();
        assert_eq!(taken["state"], "failed", "{taken}");
        let why = taken["last_reload"]["error"].as_str().unwrap();
        assert!(why.contains("port 3000 is bound by an agent"), "{why}");

        let stopped = hosted.manager.shutdown(Duration::ZERO);
        tokio::time::timeout(STEP, stopped).await.unwrap();
        let refused = a.handle.dial(b.at(2007)).await.err();
        assert_eq!(refused, Some(pilot_core::DialFailure::Refused.into()));
        assert!(hosted.shipped.path().exists());
    });
}

#[test]
fn the_webhook_is_set_and_cleared_while_the_daemon_runs() {
    run_test(async {
        let (_a, b) = pair().await;
        let hosted = host(&b, &[("sink-webhook.lua", json!({"name": "sink-webhook"}))]).await;
        let Hosted { plugins, journal, delivered, .. } = &hosted;
        assert!(!journal.events().wanted(), "it is off until it is set");
        assert_eq!(
            plugins.set_webhook("http://h/one").await.unwrap(),
            json!({"webhook": "http://h/one"})
        );
        journal.events().emit(|| Happening::NodeDeregistered);
        let heard = |name: &str| loop {
            let (url, names) = delivered.recv_timeout(STEP).unwrap();
            if names.iter().any(|n| n == name) {
                return url;
            }
        };
        assert_eq!(heard("node.deregistered"), "http://h/one");
        plugins.set_webhook("http://h/two").await.unwrap();
        journal.events().emit(|| Happening::DaemonStarted { version: "1".into() });
        assert_eq!(heard("daemon.started"), "http://h/two");
        let refused = plugins.set_webhook("http://h/refused").await.unwrap_err();
        assert!(refused.text.contains("is not to be used"), "{}", refused.text);
        journal.events().emit(|| Happening::DaemonStopping { reason: "test".into() });
        assert_eq!(heard("daemon.stopping"), "http://h/two", "what was set before stays");

        assert_eq!(plugins.set_webhook("").await.unwrap(), json!({"webhook": ""}));
        assert_eq!(plugins.describe("sink-webhook").unwrap()["state"], "off");
        assert_eq!(journal.status()["sinks"], json!([]), "nothing is kept for it");
    });
}

#[test]
fn plugins_reach_the_daemon_by_the_platform() {
    run_test(async {
        let (a, b) = pair().await;
        let hosted = host(&b, &[]).await;
        let platform = &hosted.platform;
        let call = |method: &str, request: Value| platform.call(method, request);
        let data = b.folder.path().to_str().unwrap();
        let folders = call("node.folders", Value::Null).await.unwrap();
        assert_eq!(folders["received"], format!("{data}/received"));
        assert_eq!(folders["home"], data);
        a.handle.dial(b.at(7)).await.unwrap();
        let status = call("node.status", Value::Null).await.unwrap();
        assert_eq!((&status["peers"], &status["registry"]), (&json!(1), &json!("off")));
        let peers = call("node.peers", Value::Null).await.unwrap();
        assert_eq!(peers["peers"][0]["node_id"], 1);
        assert_eq!(call("node.info", Value::Null).await.unwrap()["node_id"], 2);
        assert_eq!(
            call("node.reboot", Value::Null).await,
            Err(CallError::Unknown("node.reboot".into()))
        );
        let refused = call("registry.lookup", json!({"node_id": "x"})).await;
        let text = "registry.lookup needs node_id, the number of a node".to_owned();
        assert_eq!(refused, Err(CallError::Failed(text)));
        let listed = call("plugins.list", Value::Null).await.unwrap();
        assert!(listed["plugins"].is_array());

        let mut stream = platform.dial("1:7").await.unwrap();
        stream.write(Bytes::from_static(b"ping"));
        let got = std::future::poll_fn(|cx| stream.poll_read(cx)).await.unwrap();
        assert_eq!(got.as_deref(), Some(b"ping".as_slice()));
        let mut other = platform.dial("0:0000.0000.0001:7").await.unwrap();
        other.reset("done");
        for wrong in ["", "7", "1:x", ":7"] {
            assert!(platform.dial(wrong).await.err().unwrap().contains("HOSTNAME:PORT"), "{wrong}");
        }
        let refused = platform.dial("1:999").await.err().unwrap();
        assert_eq!(refused, "dial 1:999: connection refused");
        let peer = platform.peer(a.at(7));
        assert_eq!((peer.address, peer.trusted), (a.at(7), false));
    });
}
