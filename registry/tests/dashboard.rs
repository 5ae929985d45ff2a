//! The dashboard in a real browser, where one is installed.

mod client;
mod site;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use client::plugins::shipped;
use client::{Client, Identity, eventually};
use pilot_registry::Config;
use serde_json::json;
use site::{PATIENCE, Site, config};

/// The browser on the path.
fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("chromium")).find(|file| file.is_file())
}

/// What the page at `url` has become after some seconds of its own time. None
/// without a browser, which is said.
fn rendered(test: &str, url: &str) -> Option<String> {
    let Some(browser) = browser() else {
        eprintln!("skipped: {test}: there is no chromium on the path");
        return None;
    };
    let profile = tempfile::tempdir().unwrap();
    let page = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=8000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdout(page.reopen().unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE * 3;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser does not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(status.success(), "{status}");
    Some(std::fs::read_to_string(page.path()).unwrap())
}

/// The text of the element with this identity, markup left out.
fn inside(page: &str, id: &str, end: &str) -> String {
    let start = page.find(&format!("id=\"{id}\"")).unwrap_or_else(|| panic!("no {id} in {page}"));
    let rest = &page[start..];
    let rest = &rest[rest.find('>').unwrap() + 1..];
    rest[..rest.find(end).unwrap()].to_owned()
}

#[test]
fn the_page_shows_counts_networks_and_public_nodes_alone() {
    let plugins = Some(vec![shipped().to_owned()]);
    let site = Site::start(Config { plugin_path: plugins, ..config() });
    let mut client = Client::connect(site.addr);
    let keys: Vec<Identity> = (1..=4).map(Identity::new).collect();
    for key in &keys {
        client.register(key);
    }
    let ok = |reply: serde_json::Value| {
        assert!(reply["type"].as_str().unwrap().ends_with("_ok"), "{reply}");
    };
    for (n, name) in [(1, "ada"), (2, "grace")] {
        let key = &keys[n as usize - 1];
        ok(client.ask(key.signed("set_visibility", n, json!({ "public": true }))));
        ok(client.ask(key.signed("set_hostname", n, json!({ "hostname": name }))));
    }
    ok(client.ask(keys[0].signed("set_tags", 1, json!({ "tags": ["gpu"] }))));
    for (a, b) in [(1, 2), (2, 1), (1, 3), (3, 1)] {
        let key = &keys[a as usize - 1];
        ok(client.ask(key.about("report_trust", "report_trust", a, b, json!({}))));
    }
    eventually("the nodes are counted", || site.get("/api/stats").json()["total_trust_links"] == 2);
    let made = site.request(&json!({
        "type": "network_create", "name": "lab", "join": { "rules": [{ "rule": "open" }] },
    }));
    assert_eq!(made.status, 200, "{made:?}");
    eventually("the network is counted", || {
        site.get("/api/stats").json()["networks"][1]["name"] == "lab"
    });
    let Some(page) = rendered(
        "the_page_shows_counts_networks_and_public_nodes_alone",
        &format!("http://{}/", site.http),
    ) else {
        return site.end();
    };
    assert!(page.contains("data-state=\"shown\""), "{page}");
    assert!(!page.contains("data-error"), "{page}");
    assert_eq!(inside(&page, "total", "<"), "4");
    assert_eq!(inside(&page, "split", "<"), "2 public, 2 private");
    assert_eq!(inside(&page, "online", "<"), "4");
    assert_eq!(inside(&page, "links", "<"), "2");
    assert_eq!(inside(&page, "health", "<"), "ready");
    let networks = inside(&page, "networks", "</table>");
    assert!(networks.contains("backbone") && networks.contains("lab"), "{networks}");
    let nodes = inside(&page, "nodes", "</table>");
    for wanted in ["ada", "grace", "gpu", "0:0000.0000.0001"] {
        assert!(nodes.contains(wanted), "{wanted}: {nodes}");
    }
    assert!(!page.contains("0:0000.0000.0003") && !page.contains("0:0000.0000.0004"), "{page}");
    let graph = inside(&page, "graph", "</svg>");
    assert_eq!((graph.matches("<circle").count(), graph.matches("<line").count()), (2, 1));
    // The policy lets the page's own style and script run, and rates are drawn.
    assert!(inside(&page, "rates", "</svg>").contains("<path"), "{page}");
    assert!(page.contains("id=\"auditCard\" hidden"), "{page}");
    site.end();
}
