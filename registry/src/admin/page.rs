//! `/`: the dashboard, one page with its style and script in it. The policy
//! that goes with it allows exactly these two, and nothing from elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{CONTENT_SECURITY_POLICY, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::answer::{Answer, whole};

const HTML: &str = include_str!("dashboard.html");

/// The page, and what it may do.
#[derive(Debug)]
pub(super) struct Page {
    policy: HeaderValue,
}

impl Page {
    pub(super) fn new() -> Self {
        let (style, script) = (hash("style"), hash("script"));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        );
        // Base64 and the words above are all visible ASCII.
        let nothing = HeaderValue::from_static("default-src 'none'");
        Self { policy: HeaderValue::try_from(policy).unwrap_or(nothing) }
    }

    pub(super) fn answer(&self) -> Answer {
        let mut answer = whole("text/html; charset=utf-8", Bytes::from_static(HTML.as_bytes()));
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        answer
    }
}

/// Of what stands in the page's one element of this name.
fn hash(element: &str) -> String {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let inside = HTML.split_once(&start).and_then(|(_, rest)| rest.split_once(&end));
    STANDARD.encode(Sha256::digest(inside.map_or("", |(inside, _)| inside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_makes_no_html_of_data() {
        for element in ["style", "script"] {
            assert_eq!(HTML.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(HTML.matches(&format!("</{element}>")).count(), 1, "{element}");
        }
        for bad in [
            "src=",
            "@import",
            "url(",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
            "<link",
        ] {
            assert!(!HTML.contains(bad), "{bad}");
        }
        // The one address is the name space of SVG.
        let elsewhere = HTML
            .match_indices("http")
            .filter(|(at, _)| !HTML[*at..].starts_with("http://www.w3.org/2000/svg"));
        assert_eq!(elsewhere.count(), 0);
    }
}
