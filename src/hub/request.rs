//! Requests to the hub and to where it leads. The token goes to the hub alone.

use std::ops::RangeInclusive;
use std::time::Duration;

use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

use super::{Hub, HubError, HubId, Token};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Silence after which a connection counts as cut.
const SILENCE: Duration = Duration::from_secs(30);

/// Sends requests; it follows no redirect by itself and asks for files as they are.
pub(super) struct Client<'a> {
    pub hub: &'a Hub,
    token: Option<Token>,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// Prepares requests to a hub.
    ///
    /// # Errors
    /// A token that cannot be sent.
    pub fn new(hub: &'a Hub) -> Result<Self, HubError> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("shammah/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        let token = hub.token.clone().map_err(|_| HubError::Token)?;
        Ok(Self { hub, token, agent: config.build().into() })
    }

    /// Sends one request.
    pub fn get(
        &self,
        url: &str,
        range: Option<RangeInclusive<u64>>,
    ) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(range) = range {
            let end =
                if *range.end() == u64::MAX { String::new() } else { range.end().to_string() };
            request = request.header(header::RANGE, format!("bytes={}-{end}", range.start()));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.0));
        }
        request.call().map_err(|error| HubError::Unreachable {
            // No path: that of a redirect is signed.
            endpoint: origin(url),
            problem: error.to_string(),
        })
    }

    /// Sends a request, and again to where it is redirected as long as `goes_on` lets it; `what` is for messages.
    pub fn follow(
        &self,
        mut url: String,
        range: Option<RangeInclusive<u64>>,
        what: &str,
        goes_on: impl Fn(&str) -> bool,
    ) -> Result<Response<Body>, HubError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(&url, range.clone())?;
            match location(&response, &url).filter(|next| goes_on(next)) {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(self.answer(what, "with redirects without end".to_owned()))
    }

    /// Whether a URL leads to the hub itself: the same scheme, host and port.
    pub fn is_hub(&self, url: &str) -> bool {
        same_origin(url, &self.hub.endpoint)
    }

    /// Says that an answer is not that of a hub.
    pub fn answer(&self, what: &str, problem: String) -> HubError {
        HubError::Answer { endpoint: self.hub.endpoint.clone(), file: what.to_owned(), problem }
    }

    /// Says why the hub refuses.
    pub fn refusal(&self, id: &HubId, response: &Response<Body>, file: &str) -> HubError {
        let endpoint = self.hub.endpoint.clone();
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        match (response.status().as_u16(), code) {
            (404, code) | (401 | 403, code @ Some("RevisionNotFound" | "EntryNotFound")) => {
                let (what, remedy) = match code {
                    Some("EntryNotFound") => (format!("{file} in {}", id.repo), "check the id"),
                    Some("RevisionNotFound") => {
                        let what = format!("revision {} of {}", id.revision(), id.repo);
                        (what, "check what stands behind the @ (a branch, a tag or a commit)")
                    }
                    _ => (
                        format!("model {id}"),
                        "check the spelling of id and revision; if it is private, set HF_TOKEN",
                    ),
                };
                HubError::Missing { what, endpoint, remedy: remedy.to_owned() }
            }
            (status @ (401 | 403), _) => HubError::Gated {
                id: id.to_string(),
                repo: id.repo.clone(),
                endpoint,
                status,
                with_token: self.token.is_some(),
            },
            (status, _) => self.answer(file, format!("HTTP {status}")),
        }
    }
}

/// Returns where a redirect leads to, as a whole URL.
fn location(response: &Response<Body>, url: &str) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let to = response.headers().get(header::LOCATION)?.to_str().ok()?;
    match to.strip_prefix('/') {
        Some(rest) if !rest.starts_with('/') => Some(format!("{}{to}", origin(url))),
        Some(_) => Some(format!("{}:{to}", url.split(':').next()?)),
        None => Some(to.to_owned()),
    }
}

/// Returns scheme, host and port of a URL; the port only if it is not the scheme's own.
fn origin(url: &str) -> String {
    let uri: Uri = url.parse().unwrap_or_default();
    let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let scheme = uri.scheme_str().unwrap_or_default();
    let own_port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    format!("{scheme}://{}", host.strip_suffix(own_port).unwrap_or(host))
}

fn same_origin(one: &str, other: &str) -> bool {
    origin(one).eq_ignore_ascii_case(&origin(other)) && one.contains("://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_the_same_scheme_host_and_port_alone() {
        let hub = "https://huggingface.co";
        assert!(same_origin("https://huggingface.co/a/b?x", hub));
        assert!(same_origin("https://HuggingFace.co/", hub));
        assert!(same_origin("https://huggingface.co:443/a", hub));
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:444/a",
            "https://huggingface.co:80/a",
            "https://huggingface.co.evil.org/a",
            "https://huggingface.co@evil.org/a",
            "https://cdn-lfs.huggingface.co/a",
            "not a url",
        ] {
            assert!(!same_origin(other, hub), "{other}");
        }
        assert!(!same_origin("http://127.0.0.1:8001/", "http://127.0.0.1:8000"));
        assert!(!same_origin("not a url", "neither is this"));
    }
}
