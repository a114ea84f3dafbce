//! The environment of a container: pairs of a name and a value.

/// The last value of a variable: of several the last counts, as in the maps of most languages.
pub fn last<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().rev().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_values_counts() {
        let env = [("A", "1"), ("B", ""), ("A", " 2 ")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!([last(&env, "A"), last(&env, "B"), last(&env, "C")], [Some(" 2 "), Some(""), None]);
    }
}
