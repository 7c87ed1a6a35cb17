//! Numbers of the guest-facing process, as Prometheus' text: taken only if they look like its own.
use std::collections::BTreeSet;

/// Most samples: some hundred are usual.
const MOST_LINES: usize = 2000;

/// Names of the metrics that the guest-facing process has.
#[derive(Debug)]
pub(super) struct Families(BTreeSet<String>);

impl Families {
    /// Those with these names.
    pub(super) fn of(names: &[String]) -> Self {
        Self(names.iter().cloned().collect())
    }

    /// The text without its end, if every line of it is about one of these, and has the shape that it should. Another one
    /// could pass for numbers of the control plane, or for several.
    pub(super) fn check<'a>(&self, text: &'a str) -> Option<&'a str> {
        let body = text.strip_suffix("# EOF\n")?;
        let good = body.lines().take(MOST_LINES + 1).filter(|line| self.is_own(line)).count();
        (good == body.lines().count() && good <= MOST_LINES).then_some(body)
    }

    fn is_own(&self, line: &str) -> bool {
        if !line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return false;
        }
        let described = ["# HELP ", "# TYPE ", "# UNIT "].iter().find_map(|kind| line.strip_prefix(kind));
        let name = match described {
            Some(rest) => rest.split(' ').next().unwrap_or_default(),
            None => {
                let Some((name, value)) = line.rsplit_once(' ') else { return false };
                if value.parse::<f64>().is_err() {
                    return false;
                }
                let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
                if !labels.ends_with('}') {
                    return false;
                }
                name
            }
        };
        // What a sample's name has more than that of its family (OpenMetrics).
        const SUFFIXES: [&str; 5] = ["", "_total", "_bucket", "_sum", "_count"];
        SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|name| self.0.contains(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "# HELP metadata_requests Requests.\n# TYPE metadata_requests counter\n\
        metadata_requests_total{by=\"nova\",status=\"200\"} 7\n\
        # HELP metadata_nova_seconds Time until nova's answer began.\n# TYPE metadata_nova_seconds histogram\n\
        metadata_nova_seconds_sum 0.25\nmetadata_nova_seconds_count 1\n\
        metadata_nova_seconds_bucket{le=\"+Inf\"} 1\n\
        # HELP metadata_connections Connections.\n# TYPE metadata_connections gauge\nmetadata_connections 1\n# EOF\n";

    fn families() -> Families {
        Families::of(&["requests", "nova_seconds", "connections"].map(|name| format!("metadata_{name}")))
    }

    #[test]
    fn its_own_numbers_are_taken() {
        let families = families();
        assert_eq!(families.check(OWN).unwrap().to_owned() + "# EOF\n", OWN);
    }

    #[test]
    fn nothing_that_could_be_anothers_is() {
        let families = families();
        for line in [
            "metadata_ready 1",
            "# TYPE metadata_ready gauge",
            "metadata_requests_total",
            "metadata_requests_total{by=\"nova\" 7",
            "metadata_requests_total{by=\"x\"} seven",
            "# EOF",
            "",
            "metadata_requests_total{by=\"\u{7f}\"} 1",
        ] {
            assert!(families.check(&format!("{line}\n# EOF\n")).is_none(), "{line}");
        }
        assert!(families.check("metadata_connections 1\n").is_none(), "without an end");
        let many = "metadata_connections 1\n".repeat(MOST_LINES + 1) + "# EOF\n";
        assert!(families.check(&many).is_none());
    }
}
