//! What of the node is shown, and the pages that show it. Everything that
//! comes from elsewhere is escaped; the pages load nothing.

use std::fmt::Write;

use pilot_plugin::json::{Map, Value, json};

/// Peers shown at the most.
const MAX_PEERS: usize = 200;
/// Services shown at the most.
const MAX_SERVICES: usize = 256;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--dim:#59636e;--line:#d1d9e0}\
@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--bg:#0d1117;--dim:#9198a1;--line:#3d444d}}\
body{margin:0 auto;max-width:44rem;padding:1.5rem 1rem;color:var(--fg);background:var(--bg);\
font:16px/1.5 system-ui,sans-serif}\
h1{font-size:1.4rem;margin:0;overflow-wrap:anywhere}h2{font-size:1rem;margin:1.5rem 0 .25rem}\
p{margin:0;color:var(--dim)}table{width:100%;border-collapse:collapse}\
td,th{padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);text-align:left;\
vertical-align:top;font-weight:400;overflow-wrap:anywhere}th{color:var(--dim);width:40%}\
ul{padding:0;list-style:none}a{color:inherit}code{font:.95em ui-monospace,monospace}";

/// What is shown, from what the host says of the node, its plugins, and its
/// peers if they are shown.
pub(crate) fn status(node: &Value, plugins: &Value, peers: Option<&Value>) -> Value {
    let mut all = Map::new();
    for key in ["node_id", "address", "hostname", "registry", "uptime_secs"] {
        if let Some(value) = node.get(key).filter(|v| v.is_string() || v.is_number()) {
            all.insert(key.to_owned(), value.clone());
        }
    }
    for key in ["peers", "encrypted_peers", "streams"] {
        let count = match node.get(key) {
            Some(Value::Array(list)) => Some(json!(list.len())),
            Some(number @ Value::Number(_)) => Some(number.clone()),
            _ => None,
        };
        all.extend(count.map(|count| (key.to_owned(), count)));
    }
    all.insert("services".to_owned(), services(plugins).into());
    if let Some(peers) = peers {
        all.insert("peer_list".to_owned(), listed_peers(peers).into());
    }
    Value::Object(all)
}

/// Name and ports of every service that answers, in the host's list of plugins.
fn services(listed: &Value) -> Vec<Value> {
    let plugins = listed["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let answers =
        |plugin: &&Value| matches!(plugin["state"].as_str(), Some("running" | "over-budget"));
    let all = plugins.iter().filter(answers);
    all.filter_map(|plugin| plugin["provides"]["services"].as_array())
        .flatten()
        .filter(|service| service["name"].is_string())
        .take(MAX_SERVICES)
        .map(|service| json!({ "name": service["name"], "ports": service["ports"] }))
        .collect()
}

/// Who peers are, not where.
fn listed_peers(peers: &Value) -> Vec<Value> {
    let list = peers["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown = |peer: &Value| {
        let keys = ["node_id", "encrypted", "authenticated", "relay"];
        let plain = |key: &str| Some((key.to_owned(), peer.get(key)?.clone()));
        keys.into_iter().filter_map(plain).collect::<Map<_, _>>().into()
    };
    list.iter().take(MAX_PEERS).map(shown).collect()
}

/// The page that shows the result of [`status`].
pub(crate) fn render(status: &Value) -> String {
    let address = text(&status["address"]);
    let title = match text(&status["hostname"]) {
        name if name.is_empty() => address.clone(),
        name => name,
    };
    let mut page = begin(&title);
    let _ =
        write!(page, "<h1>{}</h1><p><code>{}</code></p><table>", escape(&title), escape(&address));
    let uptime = status["uptime_secs"].as_u64().map(duration).unwrap_or_default();
    for (name, value) in [
        ("Node", text(&status["node_id"])),
        ("Up for", uptime),
        ("Registry", text(&status["registry"])),
        ("Peers", text(&status["peers"])),
        ("Streams", text(&status["streams"])),
    ] {
        if !value.is_empty() {
            let _ = write!(page, "<tr><th>{name}<td>{}", escape(&value));
        }
    }
    page.push_str("</table>");
    table(&mut page, "Services", &status["services"], |service| {
        let ports = service["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ports: Vec<_> = ports.iter().map(text).collect();
        (text(&service["name"]), ports.join(", "))
    });
    table(&mut page, "Peers", &status["peer_list"], |peer| {
        let is = |key: &str| peer[key].as_bool() == Some(true);
        let path = if is("relay") { "over a relay" } else { "direct" };
        let path = if is("encrypted") { path } else { "no tunnel" };
        (text(&peer["node_id"]), path.to_owned())
    });
    page.push_str("<h2>As JSON</h2><p><a href=\"/status.json\">/status.json</a></p>");
    page
}

fn table(page: &mut String, title: &str, rows: &Value, row: impl Fn(&Value) -> (String, String)) {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    if rows.is_empty() {
        return;
    }
    let _ = write!(page, "<h2>{title}</h2><table>");
    for (name, value) in rows.iter().map(row) {
        let _ = write!(page, "<tr><th>{}<td>{}", escape(&name), escape(&value));
    }
    page.push_str("</table>");
}

/// A list of a folder's names.
pub(crate) fn list(path: &str, names: &[String]) -> String {
    let path = escape(path);
    let mut page = begin("Files");
    let _ = write!(page, "<h1><code>{path}</code></h1><ul>");
    for name in names {
        // The dot keeps a colon in a name from being a scheme.
        let _ = write!(page, "<li><a href=\"./{}\">{}</a>", encode(name), escape(name));
    }
    page.push_str("</ul>");
    page
}

fn begin(title: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style>",
        escape(title)
    )
}

/// Texts and numbers as they are; nothing for the rest.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// For a URL; slashes stay.
fn encode(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// As in `3 d 4 h`.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Value {
        json!({
            "node_id": 7, "address": "0:0000.0000.0007", "hostname": "<script>",
            "registry": "up", "uptime_secs": 90_000, "peers": 2, "encrypted_peers": 1,
            "streams": 1, "owner": "a@example.org",
        })
    }

    fn peers() -> Value {
        json!({ "peers": [
            { "node_id": 8, "endpoint": "192.0.2.1:4000", "encrypted": true, "relay": true },
        ]})
    }

    fn plugins() -> Value {
        let services = json!([{ "name": "echo & co", "ports": [7, 8], "datagrams": false }]);
        json!({ "plugins": [
            { "name": "echo", "file": "/secret/path.so", "state": "running",
              "provides": { "services": services } },
            { "name": "gone", "state": "failed",
              "provides": { "services": [{ "name": "gone", "ports": [9] }] } },
        ]})
    }

    #[test]
    fn peers_are_counted_unless_they_are_to_be_shown() {
        let counted = status(&node(), &plugins(), None);
        assert_eq!(
            counted,
            json!({
                "node_id": 7, "address": "0:0000.0000.0007", "hostname": "<script>",
                "registry": "up", "uptime_secs": 90_000, "peers": 2, "encrypted_peers": 1,
                "streams": 1, "services": [{ "name": "echo & co", "ports": [7, 8] }],
            })
        );
        let shown = status(&node(), &plugins(), Some(&peers()));
        let listed = json!([{ "node_id": 8, "encrypted": true, "relay": true }]);
        assert_eq!(shown["peer_list"], listed);
        assert_eq!(shown["services"], counted["services"]);
    }

    #[test]
    fn the_page_shows_the_node_escaped_and_loads_nothing() {
        let page = render(&status(&node(), &plugins(), Some(&peers())));
        for shown in [
            "&lt;script&gt;",
            "0:0000.0000.0007",
            "1 d 1 h",
            "echo &amp; co",
            "7, 8",
            "over a relay",
        ] {
            assert!(page.contains(shown), "{shown}: {page}");
        }
        for absent in ["<script", "192.0.2.1", "secret", "example.org", "http:", "https:", "src="] {
            assert!(!page.contains(absent), "{absent}: {page}");
        }
        assert!(page.contains("prefers-color-scheme") && page.contains("width=device-width"));
        // Without anything from the host it is still a page.
        let bare = status(&Value::Null, &Value::Null, Some(&Value::Null));
        assert!(render(&bare).contains("/status.json"));
    }

    #[test]
    fn names_in_a_list_are_links_to_themselves() {
        let page = list("/a<b/", &["x y?.txt".into(), "javascript:alert(1)".into(), "sub/".into()]);
        assert!(page.contains("href=\"./x%20y%3F.txt\"") && page.contains("/a&lt;b/"));
        assert!(page.contains("href=\"./javascript%3Aalert%281%29\""));
        assert!(page.contains("href=\"./sub/\""));
    }
}
