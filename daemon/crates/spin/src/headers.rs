//! The `spin-*` headers that tell a component of its request.

use crate::routes::RouteMatch;

/// The facts about a request besides its route.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority: a host, with its port if there is one.
    pub host: &'a str,
    /// The path, with the query if there is one.
    pub path_and_query: &'a str,
    /// The client's address and port; none if another component of the application calls.
    pub client: Option<&'a str>,
}

/// The headers of a request that a route took. They replace those that the client sent.
pub fn headers(found: &RouteMatch<'_>, facts: &RequestFacts<'_>) -> Vec<(String, String)> {
    let full_url = format!("{}://{}{}", facts.scheme, facts.host, facts.path_and_query);
    let mut headers = vec![
        ("spin-path-info".to_string(), found.rest.clone()),
        ("spin-full-url".into(), full_url),
        ("spin-matched-route".into(), found.route.as_written().into()),
        ("spin-raw-component-route".into(), found.route.as_written().into()),
        ("spin-component-route".into(), found.route.without_wildcard().into()),
        ("spin-base-path".into(), "/".into()),
    ];
    if let Some(client) = facts.client {
        headers.push(("spin-client-addr".into(), client.into()));
    }
    let parameter =
        |(name, value): &(&str, &str)| (format!("spin-path-match-{}", name.to_ascii_lowercase()), value.to_string());
    headers.extend(found.parameters.iter().map(parameter));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::RoutePattern;

    #[test]
    fn a_component_is_told_of_its_request() {
        let route = RoutePattern::parse("/users/:ID/...").unwrap();
        let found = route.matches("/users/7/a/b").unwrap();
        let facts = RequestFacts {
            scheme: "http",
            host: "example.org:8080",
            path_and_query: "/users/7/a/b?x=1",
            client: Some("10.0.0.1:4000"),
        };
        let told = headers(&found, &facts);
        let told: Vec<_> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            told,
            [
                ("spin-path-info", "/a/b"),
                ("spin-full-url", "http://example.org:8080/users/7/a/b?x=1"),
                ("spin-matched-route", "/users/:ID/..."),
                ("spin-raw-component-route", "/users/:ID/..."),
                ("spin-component-route", "/users/:ID"),
                ("spin-base-path", "/"),
                ("spin-client-addr", "10.0.0.1:4000"),
                ("spin-path-match-id", "7"),
            ]
        );
    }

    #[test]
    fn a_call_of_another_component_has_no_client_address() {
        let route = RoutePattern::parse("/...").unwrap();
        let found = route.matches("/").unwrap();
        let facts = RequestFacts { scheme: "http", host: "b.spin.internal", path_and_query: "/", client: None };
        let told = headers(&found, &facts);
        assert!(told.iter().all(|(name, _)| name != "spin-client-addr"));
        assert!(told.contains(&("spin-component-route".into(), String::new())), "{told:?}");
    }
}
