//! Labels in Prometheus' text: `name="value",name="value"`.

use std::borrow::Cow;

/// Most labels one row may carry, identity included: DCGM exporters write about fifteen.
pub const PAIRS_MAX: usize = 64;

/// Why a text is not a label list: what was wrong, and at which byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("labels: {wanted} expected at byte {at}")]
pub struct LabelTextError {
    wanted: &'static str,
    at: usize,
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn eat(&mut self, c: char) -> bool {
        let hit = self.rest().starts_with(c);
        self.at += if hit { c.len_utf8() } else { 0 };
        hit
    }

    fn fail<T>(&self, wanted: &'static str) -> Result<T, LabelTextError> {
        Err(LabelTextError { wanted, at: self.at })
    }

    fn name(&mut self) -> Result<&'a str, LabelTextError> {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let name = rest.get(..end).unwrap_or_default();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return self.fail("a label name");
        }
        self.at += end;
        Ok(name)
    }

    /// What stands between the quotes, the opening one being taken already.
    fn value(&mut self) -> Result<Cow<'a, str>, LabelTextError> {
        let mut unescaped = String::new();
        loop {
            let rest = self.rest();
            let Some(end) = rest.find(['"', '\\']) else {
                self.at = self.text.len();
                return self.fail("a closing quote");
            };
            let plain = rest.get(..end).unwrap_or_default();
            self.at += end;
            if self.eat('"') {
                if unescaped.is_empty() {
                    return Ok(Cow::Borrowed(plain));
                }
                return Ok(Cow::Owned(unescaped + plain));
            }
            unescaped.push_str(plain);
            self.at += 1; // the backslash
            unescaped.push(match self.rest().chars().next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\')) => c,
                _ => return self.fail("one of \\n, \\\" and \\\\"),
            });
            self.at += 1;
        }
    }
}

/// Parses a label list, strictly: what Prometheus would refuse is refused here. Braces around
/// it and a comma at its end are allowed.
///
/// # Errors
/// Says what was expected where.
pub fn parse_labels(text: &str) -> Result<Vec<(&str, Cow<'_, str>)>, LabelTextError> {
    let text = text.trim_matches([' ', '\t']);
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
    let mut cursor = Cursor { text: inner, at: 0 };
    let mut pairs: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(12);
    loop {
        cursor.skip_blanks();
        if cursor.rest().is_empty() {
            return Ok(pairs);
        }
        if pairs.len() == PAIRS_MAX {
            return cursor.fail("at most 64 labels, so the end");
        }
        let name = cursor.name()?;
        if pairs.iter().any(|(known, _)| *known == name) {
            return cursor.fail("a name not seen before");
        }
        cursor.skip_blanks();
        if !cursor.eat('=') {
            return cursor.fail("=");
        }
        cursor.skip_blanks();
        if !cursor.eat('"') {
            return cursor.fail("an opening quote");
        }
        pairs.push((name, cursor.value()?));
        cursor.skip_blanks();
        if !cursor.eat(',') && !cursor.rest().is_empty() {
            return cursor.fail("a comma");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn label_lists_come_apart() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let parsed = parse_labels(text).unwrap();
            let parsed: Vec<_> = parsed.iter().map(|(n, v)| (*n, v.as_ref())).collect();
            assert_eq!(parsed, expected, "{text}");
        };
        check("", &[]);
        check("{}", &[]);
        check(r#"a="1",b="""#, &[("a", "1"), ("b", "")]);
        check(r#"{ a = "1" , b_2="x,y=}" , }"#, &[("a", "1"), ("b_2", "x,y=}")]);
        check(r#"a="q\"b\\n\nend",b="°""#, &[("a", "q\"b\\n\nend"), ("b", "°")]);
    }

    #[test]
    fn what_prometheus_refuses_is_refused() {
        let check = |text: &str, expected: &str| {
            assert_eq!(parse_labels(text).unwrap_err().to_string(), expected, "{text}");
        };
        check("a", "labels: = expected at byte 1");
        check("a=1", "labels: an opening quote expected at byte 2");
        check(r#"a="1"#, "labels: a closing quote expected at byte 4");
        check(r#"a="1" b="2""#, "labels: a comma expected at byte 6");
        check(r#"1a="1""#, "labels: a label name expected at byte 0");
        check(r#"a="\t""#, r#"labels: one of \n, \" and \\ expected at byte 4"#);
        check(r#"a="1",a="2""#, "labels: a name not seen before expected at byte 7");
        check(r#",a="1""#, "labels: a label name expected at byte 0");
        let many: String = (0..65).map(|i| format!("l{i}=\"\",")).collect();
        assert!(parse_labels(&many).is_err());
    }

    proptest! {
        #[test]
        fn any_value_survives_escaping(value in ".*") {
            let escaped =
                value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let text = format!("a=\"{escaped}\",b=\"x\"");
            let parsed = parse_labels(&text).unwrap();
            prop_assert_eq!(parsed[0].1.as_ref(), value.as_str());
            prop_assert_eq!(parsed[1].1.as_ref(), "x");
        }

        #[test]
        fn no_text_makes_it_panic(text in "[{}a-c=,\"\\\\n ]*|.*") {
            let _ = parse_labels(&text);
        }
    }
}
