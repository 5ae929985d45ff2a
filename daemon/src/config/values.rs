//! Texts to values; every refusal says what was expected.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pilot_wire::ipc::Congestion;

use super::LogFormat;
use super::raw::{ConfigError, RawConfig};

/// Longest duration taken: a year.
const MAX_SECONDS: f64 = 366.0 * 86_400.0;
/// Shortest one: below it a daemon would do nothing else.
const MIN_SECONDS: f64 = 0.01;

impl RawConfig {
    /// true, false, and the other spellings that are in use.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        match self.text(key).to_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "on" => Ok(true),
            "false" | "f" | "0" | "no" | "off" => Ok(false),
            text => Err(self.refuse(key, format!("is {text:?}, expected true or false"))),
        }
    }

    /// A whole number; 0 and nothing stand for the default.
    pub(super) fn number(
        &self,
        key: &str,
        default: usize,
        most: usize,
    ) -> Result<usize, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(default);
        }
        match text.parse() {
            Ok(0) => Ok(default),
            Ok(n) if n <= most => Ok(n),
            _ => Err(self.refuse(key, format!("is {text:?}, expected a number from 0 to {most}"))),
        }
    }

    /// A number of bytes, or of K, M, G or T (1024 each); 0 and nothing stand
    /// for no limit.
    pub(super) fn bytes(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let (number, unit) = match text.char_indices().next_back() {
            Some((at, letter)) if letter.is_ascii_alphabetic() => (&text[..at], Some(letter)),
            _ => (text, None),
        };
        let scale = match unit.map(|letter| letter.to_ascii_uppercase()) {
            None => Some(1),
            Some('K') => Some(1 << 10),
            Some('M') => Some(1 << 20),
            Some('G') => Some(1 << 30),
            Some('T') => Some(1u64 << 40),
            Some(_) => None,
        };
        let bytes = scale.and_then(|scale| number.trim().parse::<u64>().ok()?.checked_mul(scale));
        match bytes {
            Some(0) => Ok(None),
            Some(bytes) => Ok(Some(bytes)),
            None => {
                let problem = format!("is {text:?}, expected bytes like 1000000, 500M or 2G");
                Err(self.refuse(key, problem))
            }
        }
    }

    /// `30s`, `1m30s`, or a number of seconds; 0 and nothing stand for the
    /// default.
    pub(super) fn duration(&self, key: &str, default: Duration) -> Result<Duration, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(default);
        }
        match seconds(text) {
            Some(0.0) => Ok(default),
            Some(s) if (MIN_SECONDS..=MAX_SECONDS).contains(&s) => Ok(Duration::from_secs_f64(s)),
            Some(_) => Err(self.refuse(key, format!("is {text:?}, expected 10ms to a year"))),
            None => {
                let problem = format!("is {text:?}, expected a duration like 30s or 2m");
                Err(self.refuse(key, problem))
            }
        }
    }

    /// A host:port or nothing; `:PORT` is one of this machine.
    pub(super) fn host_port(&self, key: &str) -> Result<Option<String>, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let Some((host, _)) = split(text) else {
            let problem = format!("is {text:?}, expected host:port, for example 127.0.0.1:9000");
            return Err(self.refuse(key, problem));
        };
        let prefix = if host.is_empty() { "127.0.0.1" } else { "" };
        Ok(Some(format!("{prefix}{text}")))
    }

    /// An address to bind or nothing; `:PORT` is every interface.
    pub(super) fn listen(&self, key: &str) -> Result<Option<SocketAddr>, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let address = split(text).and_then(|(host, port)| {
            let ip = match host {
                "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                host => host.trim_matches(['[', ']']).parse().ok()?,
            };
            Some(SocketAddr::new(ip, port))
        });
        match address {
            Some(address) => Ok(Some(address)),
            None => {
                let problem = format!("is {text:?}, expected ip:port, for example 0.0.0.0:4000");
                Err(self.refuse(key, problem))
            }
        }
    }

    /// A path or nothing; `~/` is the home folder.
    pub(super) fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        match self.text(key) {
            "" => Ok(None),
            text => self.whole_path(key, text).map(Some),
        }
    }

    fn whole_path(&self, key: &str, text: &str) -> Result<PathBuf, ConfigError> {
        let Some(rest) = text.strip_prefix("~/") else { return Ok(text.into()) };
        match self.home() {
            Some(home) => Ok(home.join(rest)),
            None => Err(self.refuse(key, format!("is {text:?}, but HOME is not set"))),
        }
    }

    /// Paths with colons between them, or nothing.
    pub(super) fn paths(&self, key: &str) -> Result<Option<Vec<PathBuf>>, ConfigError> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let paths = text.split(':').map(|path| self.whole_path(key, path.trim()));
        paths.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The URL of a webhook or nothing.
    pub(super) fn webhook(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.text(key) {
            "" => Ok(None),
            url if url.starts_with("http://") || url.starts_with("https://") => {
                Ok(Some(url.to_owned()))
            }
            other => {
                let problem = format!("is {other:?}, expected a URL with http:// or https://");
                Err(self.refuse(key, problem))
            }
        }
    }

    /// A hostname by the published rule, or empty to give it up.
    pub(super) fn hostname(&self, key: &str) -> Result<String, ConfigError> {
        let text = self.text(key);
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let well_formed = bytes.len() <= 63
            && bytes.iter().all(|b| label(*b) || *b == b'-')
            && [bytes.first(), bytes.last()].into_iter().flatten().all(|b| label(*b));
        if !well_formed {
            let problem = format!(
                "is {text:?}, expected at most 63 of a-z, 0-9 and -, with a letter or digit at \
                 both ends"
            );
            return Err(self.refuse(key, problem));
        }
        if matches!(text, "localhost" | "backbone" | "broadcast") {
            return Err(self.refuse(key, format!("is {text:?}, which is reserved")));
        }
        Ok(text.to_owned())
    }

    /// A congestion controller by name; nothing stands for the default.
    pub(super) fn congestion(&self, key: &str) -> Result<Congestion, ConfigError> {
        match self.text(key) {
            "" => Ok(Congestion::default()),
            text => text.parse().map_err(|e| self.refuse(key, e)),
        }
    }

    pub(super) fn log_level(&self, key: &str) -> Result<tracing::Level, ConfigError> {
        match self.text(key) {
            "debug" => Ok(tracing::Level::DEBUG),
            "info" | "" => Ok(tracing::Level::INFO),
            "warn" => Ok(tracing::Level::WARN),
            "error" => Ok(tracing::Level::ERROR),
            text => {
                let problem = format!("is {text:?}, expected debug, info, warn or error");
                Err(self.refuse(key, problem))
            }
        }
    }

    pub(super) fn log_format(&self, key: &str) -> Result<LogFormat, ConfigError> {
        match self.text(key) {
            "text" | "" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            text => Err(self.refuse(key, format!("is {text:?}, expected text or json"))),
        }
    }
}

/// Whether a host:port is on this machine.
pub(super) fn is_loopback(address: &str) -> bool {
    split(address).is_some_and(|(host, _)| {
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    })
}

fn split(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.contains([':', ' ', '/', '[', ']']);
    if !bracketed && !plain || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((host, port.parse().ok()?))
}

fn seconds(text: &str) -> Option<f64> {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return text.parse().ok();
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    Some(total)
}
