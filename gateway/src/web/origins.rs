//! Pages of which other origins may ask.

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{REQUEST_ID, REVISION, STALENESS};

/// An origin as browsers send it: scheme, host, and a port that is not the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let good =
            rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['/', '?', '#', ' ', '*']));
        let origin = HeaderValue::from_str(text).ok().filter(|_| good);
        origin.map(Self).ok_or_else(|| {
            format!("{text:?} is not an origin such as https://grafana.example.com:3000")
        })
    }
}

/// Which origins' pages may ask, beside our own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// No other.
    #[default]
    Own,
    /// These.
    Listed(Vec<Origin>),
    /// Every one.
    All,
}

impl Origins {
    /// Whether a request may open a WebSocket, to which browsers apply no rule of theirs: it is
    /// not from a page, or from a page of ours, or of an origin that is allowed.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let place = origin.to_str().ok().and_then(|o| Some(o.split_once("://")?.1));
        if place.is_some() && place == own {
            return true;
        }
        match self {
            Self::Own => false,
            Self::Listed(origins) => origins.iter().any(|allowed| allowed.0 == *origin),
            Self::All => true,
        }
    }

    /// Answers browsers that ask for a page of another origin; none where no other may.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        let allowed = match self {
            Self::Own => return None,
            Self::All => AllowOrigin::any(),
            Self::Listed(origins) => AllowOrigin::list(origins.iter().map(|o| o.0.clone())),
        };
        let sent: [HeaderName; 5] = [
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::ACCEPT,
            header::IF_NONE_MATCH,
            REQUEST_ID,
        ];
        let seen =
            [REVISION, STALENESS, REQUEST_ID, header::ETAG, header::LINK, header::RETRY_AFTER];
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([
                Method::GET,
                Method::HEAD,
                Method::POST,
                Method::PUT,
                Method::PATCH,
                Method::DELETE,
            ])
            .allow_headers(sent)
            .expose_headers(seen);
        Some(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("gw.example:8080"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        headers
    }

    #[test]
    fn only_our_own_pages_and_those_that_are_listed_may_ask() {
        let listed = Origins::Listed(vec!["https://a.example".parse().unwrap()]);
        let check = |origins: &Origins, origin: Option<&'static str>, expected: bool| {
            assert_eq!(origins.allow(&headers(origin)), expected, "{origins:?} {origin:?}");
        };
        for origins in [&Origins::Own, &listed, &Origins::All] {
            check(origins, None, true);
            check(origins, Some("http://gw.example:8080"), true);
            check(origins, Some("https://a.example"), *origins != Origins::Own);
            check(origins, Some("https://b.example"), *origins == Origins::All);
            check(origins, Some("null"), *origins == Origins::All);
        }
    }

    #[test]
    fn an_origin_has_a_scheme_and_no_path() {
        for good in ["http://localhost:3000", "https://a.example"] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in ["", "*", "a.example", "https://", "https://a.example/", "ftp://a", "http://*"] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
