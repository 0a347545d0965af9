//! `/containers/{id}/top` and `/containers/{id}/stats`.

use super::Server;
use super::http::{self, Handled, Request};
use super::stream;
use crate::engine::stats::{Sample, Usage};
use cowl_launch::control::BlkioStats;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_secs(1);
/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

pub(super) async fn top(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let arguments = request.query.get("ps_args").unwrap_or_default();
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let processes = server
        .engine(move |engine| engine.top(&name, &arguments))
        .await?;
    let body = json!({"Titles": processes.titles, "Processes": processes.rows});
    http::json(StatusCode::OK, &body)
}

pub(super) async fn stats(server: &Arc<Server>, request: &Request, name: String) -> Handled {
    let query = &request.query;
    let streams = query.get("stream").is_none() || query.flag("stream");
    let one_shot = query.flag("one-shot");
    let first = sample(server, name).await?;
    let id = first.id.clone();
    if !streams {
        if one_shot || first.sample.is_none() {
            return http::json(StatusCode::OK, &shown(&first, None));
        }
        tokio::time::sleep(INTERVAL).await;
        let second = sample(server, id).await?;
        return http::json(StatusCode::OK, &shown(&second, first.sample.as_ref()));
    }
    let server = Arc::clone(server);
    Ok(stream::live("application/json", move |stream| async move {
        let mut last = None;
        let mut usage = first;
        let mut clock = tokio::time::interval(INTERVAL);
        loop {
            clock.tick().await;
            let mut line = serde_json::to_vec(&shown(&usage, last.as_ref()))?;
            line.push(b'\n');
            if stream.give(line).await.is_err() {
                return Ok(());
            }
            last = usage.sample;
            tokio::select! {
                next = sample(&server, id.clone()) => match next {
                    Ok(next) => usage = next,
                    // The container has been removed.
                    Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return Ok(()),
                    Err(refusal) => return Err(io::Error::other(refusal.message)),
                },
                () = stream.closed() => return Ok(()),
            }
        }
    }))
}

async fn sample(server: &Arc<Server>, name: String) -> Handled<Usage> {
    server.engine(move |engine| engine.usage_of(&name)).await
}

/// Docker's `StatsResponse`. As in Docker, all values are zero for a container that does not run.
fn shown(usage: &Usage, before: Option<&Sample>) -> Value {
    let time = |sample: Option<&Sample>| {
        sample.map_or_else(
            || ZERO_TIME.to_owned(),
            |sample| format!("{:.9}", sample.read),
        )
    };
    let sample = usage.sample.as_ref();
    let pids = sample.map_or(json!({}), |sample| {
        let mut pids = serde_json::Map::new();
        let counts = [
            ("current", sample.stats.pids),
            ("limit", sample.stats.pids_limit),
        ];
        for (key, count) in counts {
            if let Some(count) = count {
                pids.insert(key.to_owned(), count.into());
            }
        }
        pids.into()
    });
    json!({
        "name": format!("/{}", usage.name),
        "id": usage.id,
        "read": time(sample),
        "preread": time(before),
        "pids_stats": pids,
        "blkio_stats": blkio(sample.map_or(&[], |sample| &sample.stats.blkio)),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": cpu(sample),
        "precpu_stats": cpu(before),
        "memory_stats": memory(sample),
    })
}

fn cpu(sample: Option<&Sample>) -> Value {
    let stats = sample.map(|sample| sample.stats.cpu).unwrap_or_default();
    let mut cpu = json!({
        "cpu_usage": {
            "total_usage": stats.total,
            "usage_in_kernelmode": stats.system,
            "usage_in_usermode": stats.user,
        },
        "throttling_data": {
            "periods": stats.periods,
            "throttled_periods": stats.throttled_periods,
            "throttled_time": stats.throttled,
        },
    });
    if let (Some(sample), Some(cpu)) = (sample, cpu.as_object_mut()) {
        cpu.insert("system_cpu_usage".to_owned(), sample.host_cpu.into());
        cpu.insert("online_cpus".to_owned(), sample.processors.into());
    }
    cpu
}

fn memory(sample: Option<&Sample>) -> Value {
    let Some(sample) = sample else {
        return json!({});
    };
    let Some(stats) = &sample.stats.memory else {
        return json!({});
    };
    let details: serde_json::Map<String, Value> = stats
        .details
        .iter()
        .map(|(key, value)| (key.clone(), (*value).into()))
        .collect();
    let mut memory = json!({
        "usage": stats.usage,
        "stats": details,
        "limit": stats.limit.unwrap_or(sample.host_memory).min(sample.host_memory),
    });
    if let (Some(peak), Some(memory)) = (stats.peak, memory.as_object_mut()) {
        memory.insert("max_usage".to_owned(), peak.into());
    }
    memory
}

fn blkio(devices: &[BlkioStats]) -> Value {
    let rows = |read: fn(&BlkioStats) -> u64, write: fn(&BlkioStats) -> u64| -> Vec<Value> {
        let row = |device: &BlkioStats, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
        devices
            .iter()
            .flat_map(|device| {
                [
                    row(device, "read", read(device)),
                    row(device, "write", write(device)),
                ]
            })
            .collect()
    };
    json!({
        "io_service_bytes_recursive": rows(|d| d.read_bytes, |d| d.write_bytes),
        "io_serviced_recursive": rows(|d| d.reads, |d| d.writes),
        "io_queue_recursive": [],
        "io_service_time_recursive": [],
        "io_wait_time_recursive": [],
        "io_merged_recursive": [],
        "io_time_recursive": [],
        "sectors_recursive": [],
    })
}
