//! `cowl port`.

use super::args::Port;
use crate::cli::Stdout;
use crate::engine::Engine;
use crate::engine::error::{Error, Result};
use serde_json::Value;

/// Prints a container's published ports.
pub(in crate::cli) fn port(engine: &Engine, args: &Port, out: &mut Stdout) -> Result<u8> {
    let container = engine.inspect(&args.container)?;
    let ports = container.pointer("/NetworkSettings/Ports");
    let ports = ports.and_then(Value::as_object).into_iter().flatten();
    let Some(asked) = &args.port else {
        for (port, hosts) in ports {
            for host in published(hosts) {
                out.line(&format!("{port} -> {host}"))?;
            }
        }
        return Ok(0);
    };
    let (number, protocol) = asked.split_once('/').unwrap_or((asked, "tcp"));
    number
        .parse::<u16>()
        .map_err(|error| Error::invalid(format!("invalid port ({number}): {error}")))?;
    let wanted = format!("{number}/{protocol}");
    let hosts: Vec<String> = ports
        .filter(|(port, _)| **port == wanted)
        .flat_map(|(_, hosts)| published(hosts))
        .collect();
    if hosts.is_empty() {
        return Err(Error::not_found(format!(
            "No public port '{asked}' published for {}",
            args.container
        )));
    }
    for host in hosts {
        out.line(&host)?;
    }
    Ok(0)
}

/// Docker's `PortBinding`s as `address:port`.
fn published(hosts: &Value) -> Vec<String> {
    let text = |host: &Value, key: &str| host.get(key).and_then(Value::as_str).map(str::to_owned);
    let hosts = hosts.as_array().into_iter().flatten();
    hosts
        .map(|host| {
            let (address, port) = (text(host, "HostIp"), text(host, "HostPort"));
            let (address, port) = (address.unwrap_or_default(), port.unwrap_or_default());
            if address.contains(':') {
                format!("[{address}]:{port}")
            } else {
                format!("{address}:{port}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn published_joins_addresses_and_ports() {
        let hosts = json!([
            {"HostIp": "0.0.0.0", "HostPort": "8080"},
            {"HostIp": "::", "HostPort": "8080"},
        ]);
        assert_eq!(published(&hosts), ["0.0.0.0:8080", "[::]:8080"]);
        assert!(published(&Value::Null).is_empty());
    }
}
