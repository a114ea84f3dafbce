//! The syntax and the precedence of HTTP routes.
//!
//! | Route | Takes |
//! |---|---|
//! | `/a/b` | `/a/b` |
//! | `/a/...`, `/a/*` | `/a`, and all paths below it |
//! | `/a/:name` | one segment, up to the next `/` or `.` |
//!
//! Slashes at the start and at the end of a path do not count, and nothing is percent-decoded. Of several routes that
//! take a path, they are compared from the left: a literal segment comes before `:name`, `:name` before the end of the
//! route, the end before a wildcard. So an exact route wins, then the one with the longer prefix.

use std::cmp::Reverse;

use hearth_base::error::Result;

use crate::application::invalid;

/// A route as a trigger has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutePattern {
    text: String,
    segments: Vec<Segment>,
}

/// A piece of a route between slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// This text, or several pieces between dots.
    Literal(String),
    /// Anything up to the next slash or dot, then this text.
    Parameter { name: String, then: String },
    /// The rest of the path; only as the last segment.
    Wildcard,
}

/// How a route took a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// The route.
    pub route: &'a RoutePattern,
    /// The names of the route's parameters, each with its part of the path.
    pub parameters: Vec<(&'a str, &'a str)>,
    /// The part of the path that the wildcard took, with a slash at its start; empty if it took nothing.
    pub rest: String,
}

impl RoutePattern {
    /// Reads a route. A slash at its start is added, and one at its end is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` for a wildcard before the end, or a parameter without a name.
    pub fn parse(text: &str) -> Result<RoutePattern> {
        let wrong = |what: &str| invalid(format!("the route {text:?} {what}"));
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let written = if trimmed.starts_with('/') { trimmed.to_string() } else { format!("/{trimmed}") };
        let mut segments = Vec::new();
        for part in written.trim_matches('/').split('/') {
            if segments.last() == Some(&Segment::Wildcard) {
                return Err(wrong("has a wildcard before its end; a wildcard takes the whole rest of a path"));
            }
            segments.push(match part {
                "..." | "*" => Segment::Wildcard,
                "" => continue,
                part => match part.strip_prefix(':') {
                    None => Segment::Literal(part.into()),
                    Some(name) => {
                        let at = name.find('.').unwrap_or(name.len());
                        let (name, then) = name.split_at(at);
                        let named = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
                        if name.is_empty() || !named {
                            return Err(wrong("has a parameter whose name is not letters, digits, `-` and `_`"));
                        }
                        Segment::Parameter { name: name.into(), then: then.into() }
                    }
                },
            });
        }
        Ok(RoutePattern { text: written, segments })
    }

    /// The route that takes every path, `/...`.
    pub fn everything() -> RoutePattern {
        RoutePattern { text: "/...".into(), segments: vec![Segment::Wildcard] }
    }

    /// The route as it was written, with a slash at its start.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// The route without its wildcard: `/a` for `/a/...`, and nothing for `/...`.
    pub fn without_wildcard(&self) -> &str {
        ["/...", "/*"].iter().find_map(|end| self.text.strip_suffix(end)).unwrap_or(&self.text)
    }

    /// Matches a path.
    pub fn matches<'a>(&'a self, path: &'a str) -> Option<RouteMatch<'a>> {
        let mut rest = path.trim_matches('/');
        let mut parameters = Vec::new();
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 && !rest.is_empty() {
                rest = rest.strip_prefix('/')?;
            }
            match segment {
                Segment::Wildcard => {
                    let rest =
                        if rest.is_empty() { String::new() } else { format!("/{}", rest.trim_start_matches('/')) };
                    return Some(RouteMatch { route: self, parameters, rest });
                }
                Segment::Literal(text) => rest = rest.strip_prefix(text.as_str()).filter(|rest| ends_here(rest))?,
                Segment::Parameter { name, then } => {
                    let end = rest.find(['/', '.']).unwrap_or(rest.len());
                    let (taken, after) = rest.split_at(end);
                    if taken.is_empty() {
                        return None;
                    }
                    parameters.push((name.as_str(), taken));
                    rest = after.strip_prefix(then.as_str()).filter(|rest| ends_here(rest))?;
                }
            }
        }
        rest.is_empty().then(|| RouteMatch { route: self, parameters, rest: String::new() })
    }

    /// Its place among routes that take the same path: the greatest wins.
    fn rank(&self) -> Vec<Reverse<u8>> {
        let of = |segment: &Segment| match segment {
            Segment::Literal(_) => Reverse(0),
            Segment::Parameter { .. } => Reverse(1),
            Segment::Wildcard => Reverse(3),
        };
        self.segments.iter().map(of).chain([Reverse(2)]).collect()
    }
}

/// Whether a segment of the path ends where `rest` begins.
fn ends_here(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

/// Routes with a target each.
#[derive(Debug)]
pub struct Routes<T>(Vec<(RoutePattern, T)>);

impl<T> Routes<T> {
    /// Of two routes with the same text the later one counts.
    pub fn new(routes: impl IntoIterator<Item = (RoutePattern, T)>) -> Routes<T> {
        let mut all: Vec<(RoutePattern, T)> = Vec::new();
        for (route, target) in routes {
            all.retain(|(other, _)| other.text != route.text);
            all.push((route, target));
        }
        // The first that takes a path is the one that wins it.
        all.sort_by_cached_key(|(route, _)| Reverse(route.rank()));
        Routes(all)
    }

    /// The target of a path.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<(RouteMatch<'a>, &'a T)> {
        self.0.iter().find_map(|(route, target)| Some((route.matches(path)?, target)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(texts: &[&'static str]) -> Routes<&'static str> {
        Routes::new(texts.iter().map(|text| (RoutePattern::parse(text).unwrap(), *text)))
    }

    #[test]
    fn a_route_takes_the_paths_of_its_table() {
        for (route, path, rest) in [
            ("/", "/", Some("")),
            ("/", "/a", None),
            ("/a/b", "/a/b", Some("")),
            ("/a/b", "/a/b/", Some("")),
            ("/a/b", "/a/b/c", None),
            ("/a/b", "/a/bc", None),
            ("/a/b", "/a", None),
            ("/...", "/", Some("")),
            ("/...", "/a/b/", Some("/a/b")),
            ("/a/...", "/a", Some("")),
            ("/a/...", "/a/", Some("")),
            ("/a/...", "/a/b", Some("/b")),
            ("/a/...", "/a/b/c", Some("/b/c")),
            ("/a/...", "/ab", None),
            ("/a/*", "/a/b", Some("/b")),
            ("/a.txt", "/a.txt", Some("")),
            ("/a", "/a.txt", None),
            ("/a%2Fb", "/a%2Fb", Some("")),
            ("/a/b", "/a%2Fb", None),
            ("/u/:id", "/u/7", Some("")),
            ("/u/:id", "/u", None),
            ("/u/:id", "/u/7.json", None),
            ("/u/:id.json", "/u/7.json", Some("")),
            ("/u/:id.json", "/u/7.xml", None),
            ("/u/:id/...", "/u/7/x/y", Some("/x/y")),
            ("hello", "/hello", Some("")),
            ("/hello/", "/hello", Some("")),
        ] {
            let pattern = RoutePattern::parse(route).unwrap();
            let found = pattern.matches(path);
            assert_eq!(found.as_ref().map(|found| found.rest.as_str()), rest, "{route} of {path}");
        }
    }

    #[test]
    fn parameters_are_named() {
        let pattern = RoutePattern::parse("/:user/files/:name.txt").unwrap();
        let found = pattern.matches("/ada/files/notes.txt").unwrap();
        assert_eq!(found.parameters, [("user", "ada"), ("name", "notes")]);
    }

    #[test]
    fn the_route_that_says_most_wins() {
        let all = ["/...", "/a/...", "/:x/b", "/a/:x", "/a/b", "/a/b/...", "/:x/...", "/a"];
        for order in [all, {
            let mut back = all;
            back.reverse();
            back
        }] {
            let routes = routes(&order);
            for (path, winner) in [
                ("/a/b", Some("/a/b")),
                ("/a/b/c", Some("/a/b/...")),
                ("/a/c", Some("/a/:x")),
                ("/a/c/d", Some("/a/...")),
                ("/a", Some("/a")),
                ("/c/b", Some("/:x/b")),
                ("/c/d", Some("/:x/...")),
                ("/", Some("/...")),
            ] {
                assert_eq!(routes.find(path).map(|(_, target)| *target), winner, "{path}");
            }
        }
        assert!(super::tests::routes(&["/a", "/b/..."]).find("/c").is_none());
    }

    #[test]
    fn of_two_equal_routes_the_later_counts() {
        let pattern = |text| RoutePattern::parse(text).unwrap();
        let routes = Routes::new([(pattern("/a"), 1), (pattern("/b"), 2), (pattern("a/"), 3)]);
        assert_eq!(routes.find("/a").map(|(_, target)| *target), Some(3));
        assert_eq!(routes.0.len(), 2);
    }

    #[test]
    fn a_route_is_told_with_and_without_its_wildcard() {
        for (text, written, without) in [
            ("/...", "/...", ""),
            ("/a/...", "/a/...", "/a"),
            ("a/*", "/a/*", "/a"),
            ("/a", "/a", "/a"),
            ("/", "/", "/"),
        ] {
            let pattern = RoutePattern::parse(text).unwrap();
            assert_eq!((pattern.as_written(), pattern.without_wildcard()), (written, without));
        }
    }

    #[test]
    fn a_route_that_cannot_be_meant_is_refused() {
        for text in ["/.../a", "/*/a", "/:", "/:a b", "/a/:{x}"] {
            let error = RoutePattern::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("the route {text:?} has a ")), "{error}");
        }
    }
}
