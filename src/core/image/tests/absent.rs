//! What an index names and the archive does not have is named in a warning.

use std::sync::Mutex;

use super::*;

#[derive(Debug, Default)]
struct Told(Mutex<Vec<Absent>>);

impl Watch for Told {
    fn step(&self, _: Step) {}

    fn absent(&self, absent: &Absent) {
        self.0.lock().unwrap().push(absent.clone());
    }
}

/// Loads an archive, or one image of it; gives what is said of the rest.
fn told(files: &Files, image: Option<&str>, platforms: &[&str]) -> Vec<String> {
    let fixture = fixture();
    let told = Told::default();
    let platforms: Vec<PlatformName> = platforms.iter().map(|n| n.parse().unwrap()).collect();
    let options = LoadOptions {
        image,
        platforms: &platforms,
        watch: Some(&told),
        ..LoadOptions::default()
    };
    let path = fixture.file("archive.tar", &tar(files));
    load_with(&fixture.store, &path, &options).unwrap();
    let told = told.0.into_inner().unwrap();
    told.iter().map(ToString::to_string).collect()
}

fn on_platform(mut descriptor: Value, os: &str, architecture: &str) -> Value {
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    descriptor
}

fn part(digest: Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// `multi:1`, an index of this host's image, one for another platform and an attestation; and
/// `one:1`. Gives the digests of the other platform's layer and manifest, and of one's manifest.
fn two_names() -> (Layout, [Sha256Digest; 3]) {
    let mut layout = Layout::default();
    let digest_of = |descriptor: &Value| descriptor["digest"].as_str().unwrap().parse().unwrap();
    let here = layout.image(&[layer("a", "here")], "here");
    let other = layout.image(&[layer("a", "other")], "other");
    let manifest = digest_of(&other);
    let mut attestation =
        json!({ "mediaType": OCI_MANIFEST, "digest": digest(b"gone"), "size": 4 });
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        on_platform(here, "linux", oci::host_architecture()),
        on_platform(other, "linux", "s390x"),
        on_platform(attestation, "unknown", "unknown"),
    ]});
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "multi:1");
    let one = layout.image(&[layer("a", "one")], "one");
    let of_one = digest_of(&one);
    layout.named(one, "one:1");
    (
        layout,
        [digest(&gzip(&layer("a", "other"))), manifest, of_one],
    )
}

#[test]
fn load_tells_which_platform_is_missing() {
    let (layout, [layer, manifest, _]) = two_names();
    assert!(
        told(&layout.files(), None, &[]).is_empty(),
        "an attestation is no image"
    );
    for gone in [layer, manifest] {
        let (mut layout, _) = two_names();
        assert!(layout.blobs.remove(&gone).is_some());
        let files = layout.files();
        let missing = part(gone);
        let line =
            format!("image multi:1 for linux/s390x is left out: the archive has no {missing}");
        assert_eq!(told(&files, None, &[]), [line.as_str()]);
        assert_eq!(told(&files, Some("multi:1"), &[]), [line.as_str()]);
        let both = ["linux/s390x", oci::host_architecture()];
        assert_eq!(told(&files, None, &both), [line.as_str()]);
        // What was not asked for is not missed.
        assert!(told(&files, None, &[oci::host_architecture()]).is_empty());
        assert!(told(&files, Some("one:1"), &[]).is_empty());
        let here = format!("multi:1 (linux/{})", oci::host_architecture());
        assert!(told(&files, Some(&here), &[]).is_empty());
    }
}

#[test]
fn load_tells_which_name_is_missing() {
    let (mut layout, [.., manifest]) = two_names();
    layout.blobs.remove(&manifest);
    let line = format!(
        "image one:1 is left out: the archive has no {}",
        part(manifest)
    );
    assert_eq!(told(&layout.files(), None, &[]), [line]);
    // What manifest.json has by that name is there.
    let mut files = layout.files();
    files.extend(docker_archive(&[layer("b", "b")], &json!(["one:1"])));
    assert!(told(&files, None, &[]).is_empty());
}

/// A whole index with one image of many, as `docker save` writes it: one line. Windows' is not
/// missed.
#[test]
fn many_missing_platforms_are_one_line() {
    let mut layout = Layout::default();
    let here = layout.image(&[layer("a", "here")], "here");
    let absent = |name: &str| json!({ "mediaType": OCI_MANIFEST, "digest": digest(name.as_bytes()), "size": 5 });
    let mut manifests = vec![on_platform(here, "linux", oci::host_architecture())];
    manifests.push(on_platform(absent("windows"), "windows", "amd64"));
    for name in ["mips64le", "riscv64", "s390x"] {
        manifests.push(on_platform(absent(name), "linux", name));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let index = layout.blob(index.to_string().into(), OCI_INDEX);
    layout.named(index, "app:1");
    let line = format!(
        "image app:1 for linux/mips64le, linux/riscv64, linux/s390x is left out: the archive has no {}, nor 2 more of the parts",
        part(digest(b"mips64le"))
    );
    assert_eq!(told(&layout.files(), None, &[]), [line]);
}

/// One of two platforms by the name that lists show.
#[test]
fn load_takes_one_platform_by_its_name() {
    let (layout, _) = two_names();
    let fixture = fixture();
    let path = fixture.file("archive.tar", &tar(&layout.files()));
    let load = |image| {
        let options = LoadOptions {
            image: Some(image),
            ..LoadOptions::default()
        };
        load_with(&fixture.store, &path, &options)
    };
    let loaded = load("multi:1 (linux/s390x)").unwrap();
    let other = ImageId(digest(&config(&[layer("a", "other")], "other")));
    assert_eq!((loaded[0].image, loaded.len()), (other, 1));
    assert!(loaded[0].others.is_empty());
    let error = load("multi:1 (linux/mips)").unwrap_err().to_string();
    assert!(
        error.contains("no image for linux/mips, only for"),
        "{error}"
    );
    let error = load("none:1 (linux/s390x)").unwrap_err().to_string();
    assert!(
        error.contains("no image \"none:1\", only these: multi:1, one:1"),
        "{error}"
    );
}
