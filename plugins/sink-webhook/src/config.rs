//! The configuration as it is written. [`crate::settings`] makes of it what
//! the client needs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pilot_plugin::JsonSchema;
use pilot_plugin::serde::Deserialize;

use crate::source::Source;

/// Longest time that one POST may be given: with the budget of a delivery less
/// than the minute that a host waits for an answer.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Configuration of the event sink `sink-webhook`.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Where events are posted to: an `http` or `https` URL. Absent or empty:
    /// nothing is posted. `{from-file: PATH}` or `{from-env: NAME}` for a URL
    /// that is itself a secret.
    pub(crate) url: Option<Source>,
    /// `single`: a POST for each event, one after another. `batch`: one POST
    /// for all that are waiting.
    pub(crate) mode: Mode,
    /// Body of a POST in mode `batch`.
    pub(crate) format: BatchFormat,
    /// Longest time for one POST, from connecting to the end of the answer:
    /// `500ms`, `10s`, or a number of seconds. 5 s when absent; at most 30 s.
    pub(crate) timeout: Option<Timeout>,
    /// Headers added to each POST. A value is text, `{from-file: PATH}` or
    /// `{from-env: NAME}`.
    pub(crate) headers: BTreeMap<String, Source>,
    /// Bearer token (`Authorization: Bearer TOKEN`): text, `{from-file: PATH}`
    /// or `{from-env: NAME}`.
    pub(crate) bearer: Option<Source>,
    /// Secret that events are signed with (Standard Webhooks,
    /// `webhook-signature`): `whsec_` and base64, or any other text as it is.
    /// A list gives a signature for each, while a secret is being replaced.
    pub(crate) secret: Option<Secrets>,
    /// `http://[USER:PASSWORD@]HOST:PORT`. An `https` URL is reached through
    /// CONNECT.
    pub(crate) proxy: Option<Source>,
    /// Hosts reached without the proxy: `HOST`, `.DOMAIN` for all below it, or
    /// `*` for all.
    pub(crate) no_proxy: Vec<String>,
    /// What to do when the receiver redirects.
    pub(crate) follow_redirects: Redirects,
    /// For an `https` URL.
    pub(crate) tls: Option<Tls>,
}

/// How many events a POST carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// One, as the event is.
    #[default]
    Single,
    /// All that are waiting.
    Batch,
}

/// Form of several events in one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BatchFormat {
    /// A JSON array, `application/json`.
    #[default]
    JsonArray,
    /// One JSON object a line, `application/x-ndjson`.
    Ndjson,
}

/// Which redirects are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Redirects {
    /// None: events wait until `url` is corrected.
    #[default]
    Never,
    /// 307 and 308 to the same scheme, host and port.
    SameOrigin,
}

/// One secret or several.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(untagged)]
pub(crate) enum Secrets {
    /// One.
    One(Source),
    /// Several, the newest first.
    Many(Vec<Source>),
}

impl Secrets {
    pub(crate) fn list(&self) -> &[Source] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Whom to trust, and how to show who we are.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Tls {
    /// PEM file of certificate authorities, trusted beside the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// PEM file of the client certificate, then its chain.
    pub(crate) client_cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's key.
    pub(crate) client_key_file: Option<PathBuf>,
    /// Name expected in the receiver's certificate; that of the URL when
    /// absent.
    pub(crate) server_name: Option<String>,
}

/// Time for one POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(try_from = "WrittenTimeout")]
pub(crate) struct Timeout(#[schemars(with = "WrittenTimeout")] pub(crate) Duration);

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "pilot_plugin::serde")]
#[schemars(crate = "pilot_plugin::schemars")]
#[serde(untagged)]
enum WrittenTimeout {
    Seconds(u32),
    Text(String),
}

impl TryFrom<WrittenTimeout> for Timeout {
    type Error = String;

    fn try_from(written: WrittenTimeout) -> Result<Self, String> {
        let time = match &written {
            WrittenTimeout::Seconds(seconds) => Some(Duration::from_secs(u64::from(*seconds))),
            WrittenTimeout::Text(text) => duration(text),
        };
        time.filter(|time| !time.is_zero() && *time <= MAX_TIMEOUT).map(Self).ok_or_else(|| {
            "`timeout` must be like `500ms` or `10s`, more than 0 and at most 30s".to_owned()
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = u64::from(number.parse::<u32>().ok()?);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}
