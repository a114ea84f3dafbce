//! Texts with `{{ variable }}` in them. There is no other syntax.

use std::collections::BTreeMap;

use hearth_base::error::Result;

use crate::application::invalid;
use crate::variables::check_name;

/// A text with references to variables of the application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Variable(String),
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// `InvalidArgument` for braces that do not match, or a reference that is no name of a variable.
    pub fn parse(text: &str) -> Result<Template> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{") {
            let (literal, after) = rest.split_at(at);
            parts.push(literal_part(text, literal)?);
            let Some((name, after)) = after[2..].split_once("}}") else {
                return Err(invalid(format!("the text {text:?} has `{{{{` without `}}}}` behind it")));
            };
            let name = name.trim();
            check_name(name)?;
            parts.push(Part::Variable(name.into()));
            rest = after;
        }
        parts.push(literal_part(text, rest)?);
        parts.retain(|part| !matches!(part, Part::Literal(text) if text.is_empty()));
        Ok(Template { text: text.into(), parts })
    }

    /// Reads all texts of a list.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub(crate) fn parse_list(texts: &[String]) -> Result<Vec<Template>> {
        texts.iter().map(|text| Template::parse(text)).collect()
    }

    /// Reads the text of each key.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub(crate) fn parse_values(texts: BTreeMap<String, String>) -> Result<BTreeMap<String, Template>> {
        texts.into_iter().map(|(key, text)| Ok((key, Template::parse(&text)?))).collect()
    }

    /// The text as it was written.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// The text with the variables' values in it.
    ///
    /// # Errors
    /// `InvalidArgument` naming a variable that the application does not declare.
    pub fn render(&self, values: &BTreeMap<String, String>) -> Result<String> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Variable(name) => match values.get(name) {
                    Some(value) => out.push_str(value),
                    None => {
                        return Err(invalid(format!(
                            "the text {:?} names the variable {name:?}, which the application does not declare; add it to [variables]",
                            self.text
                        )));
                    }
                },
            }
        }
        Ok(out)
    }
}

fn literal_part(text: &str, literal: &str) -> Result<Part> {
    if literal.contains("}}") {
        return Err(invalid(format!("the text {text:?} has `}}}}` without `{{{{` before it")));
    }
    Ok(Part::Literal(literal.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_values_of_variables_in_it() {
        let values = BTreeMap::from([("host".to_string(), "db".to_string()), ("port".into(), "5432".into())]);
        for (text, rendered) in [
            ("plain", "plain"),
            ("", ""),
            ("{{host}}", "db"),
            ("postgres://{{ host }}:{{ port }}/x", "postgres://db:5432/x"),
            ("{ {{host}} }", "{ db }"),
        ] {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.render(&values).unwrap(), rendered);
            assert_eq!(template.as_written(), text);
        }
    }

    #[test]
    fn a_template_that_is_wrong_is_refused() {
        for (text, wrong) in [
            ("{{host", "has `{{` without `}}`"),
            ("host}}", "has `}}` without `{{`"),
            ("{{}}", "not a name of a variable"),
            ("{{ a.b }}", "not a name of a variable"),
        ] {
            let error = Template::parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        let error = Template::parse("{{ host }}").unwrap().render(&BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("the variable \"host\", which the application does not declare"), "{error}");
    }
}
