//! The loads that are compared, each as the options of `perf load` or `perf connect` that make it. Read by `compare`.

/// Connections of the idle scenario, where the descriptor limit allows them.
const IDLE_COUNT: u64 = 10_000;
/// Connections of the connect scenario.
const CONNECT_COUNT: u64 = 5_000;
/// Descriptors that a broker needs beside its connections; generous, because it is the broker that would fail.
const DESCRIPTORS_SPARE: u64 = 1_000;

/// What is measured, and in which unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// CPU nanoseconds per delivered message.
    Delivery,
    /// CPU nanoseconds per connection.
    Connection,
    /// Resident bytes per idle connection.
    Idle,
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// What it is, for people.
    pub text: &'static str,
    /// What is measured.
    pub measure: Measure,
    /// Options of `perf load` that make it.
    pub options: &'static str,
    /// Whether it runs when nothing else is said.
    pub is_default: bool,
}

const fn delivery(name: &'static str, text: &'static str, options: &'static str) -> Scenario {
    Scenario { name, text, measure: Measure::Delivery, options, is_default: true }
}

const fn extra(name: &'static str, text: &'static str, options: &'static str) -> Scenario {
    Scenario { is_default: false, ..delivery(name, text, options) }
}

/// All of them, in the order of the table.
pub const ALL: &[Scenario] = &[
    delivery("fan100", "1 -> 100, QoS 0, 64 B", "-P 1 -S 100"),
    delivery("fan100-1k", "1 -> 100, QoS 0, 1 KB", "-P 1 -S 100 --payload-bytes 1024"),
    delivery("fan1000", "1 -> 1000, QoS 0, 64 B", "-P 1 -S 1000"),
    extra("fan1000-1k", "1 -> 1000, QoS 0, 1 KB", "-P 1 -S 1000 --payload-bytes 1024"),
    delivery("fan100-q1", "1 -> 100, QoS 1, 64 B", "-P 1 -S 100 --qos 1"),
    extra("fan100-q1-1k", "1 -> 100, QoS 1, 1 KB", "-P 1 -S 100 --qos 1 --payload-bytes 1024"),
    delivery("pairs100", "100 pairs, QoS 0", "--layout pairs -P 100 -S 100"),
    extra("pairs100-1k", "100 pairs, QoS 0, 1 KB", "--layout pairs -P 100 -S 100 --payload-bytes 1024"),
    delivery("pairs100-q1", "100 pairs, QoS 1", "--layout pairs -P 100 -S 100 --qos 1"),
    delivery("pairs100-q2", "100 pairs, QoS 2", "--layout pairs -P 100 -S 100 --qos 2"),
    delivery("n1", "100 -> 1, QoS 0", "--layout n-to-one -P 100 -S 1"),
    extra("n1-1k", "100 -> 1, QoS 0, 1 KB", "--layout n-to-one -P 100 -S 1 --payload-bytes 1024"),
    delivery("single", "1 -> 100, one message in flight", "-P 1 -S 100 --window 1"),
    delivery("fixed", "1 -> 100 at 200 messages/s", "-P 1 -S 100 --rate 200"),
    Scenario {
        name: "connect",
        text: "connect + CONNACK, per connection",
        measure: Measure::Connection,
        options: "",
        is_default: true,
    },
    Scenario {
        name: "idle",
        text: "memory per idle connection",
        measure: Measure::Idle,
        options: "",
        is_default: true,
    },
];

/// The scenarios that a list of names asks for: nothing means the default ones, `all` means all.
pub fn chosen(names: &[String]) -> Result<Vec<Scenario>, String> {
    if names.is_empty() {
        return Ok(ALL.iter().filter(|scenario| scenario.is_default).copied().collect());
    }
    if names == ["all"] {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| {
        ALL.iter().find(|scenario| scenario.name == name).copied().ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
            format!("--scenarios knows no {name:?}; it knows all, {}", known.join(", "))
        })
    };
    names.iter().map(find).collect()
}

impl Scenario {
    /// Arguments of our own executable, without those that name the broker.
    pub fn arguments(&self, seconds: f64, mqtt: &str, descriptors: u64) -> Vec<String> {
        let connections = |count: u64| vec!["connect".into(), "--count".into(), count.to_string()];
        let mut arguments = match self.measure {
            Measure::Delivery => {
                let seconds = seconds.to_string();
                let mut arguments =
                    vec!["load".into(), "--label".into(), self.name.into(), "--seconds".into(), seconds];
                arguments.extend(self.options.split_ascii_whitespace().map(String::from));
                arguments
            }
            Measure::Connection => connections(CONNECT_COUNT.min(descriptors.saturating_sub(DESCRIPTORS_SPARE))),
            Measure::Idle => connections(IDLE_COUNT.min(descriptors.saturating_sub(DESCRIPTORS_SPARE))),
        };
        arguments.extend(["--mqtt".into(), mqtt.into(), "--json".into()]);
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_scenarios_and_an_unknown_name_lists_the_known_ones() {
        assert!(chosen(&[]).unwrap().len() < ALL.len());
        assert_eq!(chosen(&["all".into()]).unwrap().len(), ALL.len());
        let two = chosen(&["n1".into(), "idle".into()]).unwrap();
        assert_eq!(two.iter().map(|scenario| scenario.name).collect::<Vec<_>>(), ["n1", "idle"]);
        assert!(chosen(&["fan7".into()]).unwrap_err().contains("fan1000-1k"));
    }

    #[test]
    fn a_descriptor_limit_bounds_the_number_of_connections() {
        let idle = chosen(&["idle".into()]).unwrap()[0];
        assert_eq!(idle.arguments(1.0, "5", 4000)[..3], ["connect", "--count", "3000"]);
        assert_eq!(idle.arguments(1.0, "5", 1 << 20)[..3], ["connect", "--count", "10000"]);
    }
}
