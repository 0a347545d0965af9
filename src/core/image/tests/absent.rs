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
/// `one:1`. Gives the digests of the other platform's layer, configuration and manifest, and of
/// one's manifest.
fn two_names() -> (Layout, [Sha256Digest; 4]) {
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
    let of_other = [
        digest(&gzip(&layer("a", "other"))),
        digest(&config(&[layer("a", "other")], "other")),
    ];
    let [layer, config] = of_other;
    (layout, [layer, config, manifest, of_one])
}

#[test]
fn load_tells_which_platform_is_missing() {
    let (layout, [layer, config, manifest, _]) = two_names();
    assert!(
        told(&layout.files(), None, &[]).is_empty(),
        "an attestation is no image"
    );
    for gone in [layer, config, manifest] {
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
    let (_, [.., manifest]) = two_names();
    let of_one = [layer("a", "one")];
    for (gone, platform) in [
        (digest(&gzip(&of_one[0])), " for linux/amd64"),
        (digest(&config(&of_one, "one")), ""),
        (manifest, ""),
    ] {
        let (mut layout, _) = two_names();
        assert!(layout.blobs.remove(&gone).is_some());
        let line = format!(
            "image one:1{platform} is left out: the archive has no {}",
            part(gone)
        );
        assert_eq!(told(&layout.files(), None, &[]), [line]);
    }
    let (mut layout, _) = two_names();
    layout.blobs.remove(&manifest);
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

/// As partial pulls for other machines leave it: what is there is loaded.
#[test]
fn load_takes_every_platform_that_is_there() {
    let here = oci::host_architecture();
    for gone in [true, false] {
        let mut layout = Layout::default();
        let absent = json!({ "mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6 });
        let mut manifests = Vec::new();
        if gone {
            manifests.push(on_platform(absent, "linux", here));
        }
        for architecture in ["s390x", "mips64le"] {
            let image = layout.image(&[layer("a", architecture)], architecture);
            manifests.push(on_platform(image, "linux", architecture));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let index = layout.blob(index.to_string().into(), OCI_INDEX);
        layout.named(index, "app:1");
        let line = format!(
            "image app:1 for linux/{here} is left out: the archive has no {}",
            part(digest(b"absent"))
        );
        let lines = if gone { vec![line] } else { Vec::new() };
        assert_eq!(told(&layout.files(), None, &[]), lines);
        let fixture = fixture();
        let loaded = fixture.load(&layout.files()).unwrap();
        let id = |content: &str| ImageId(digest(&config(&[layer("a", content)], content)));
        let images: Vec<ImageId> = fixture
            .tag("app:1")
            .images
            .iter()
            .map(|i| i.config)
            .collect();
        assert_eq!(images, [id("s390x"), id("mips64le")]);
        assert_eq!(loaded[0].image, images[0]);
        assert_eq!(loaded[0].others[0].0, images[1]);
    }
}

/// A docker-archive of two images, of which one lacks a file; and one of that image alone.
#[test]
fn load_takes_the_whole_image_of_a_docker_archive() {
    let whole = docker_archive(&[layer("a", "whole")], &json!(["whole:1"]));
    let layers = [layer("b", "1"), layer("b", "2")];
    let mut lacking = docker_archive(&layers, &json!(["lacking:1"]));
    let items: Vec<Value> = [&whole, &lacking]
        .into_iter()
        .flat_map(|files| serde_json::from_slice::<Vec<Value>>(&files.last().unwrap().1).unwrap())
        .collect();
    lacking.pop();
    // The first layers of both are called alike.
    lacking[0].0 = "other/layer.tar".to_owned();
    let mut items = json!(items);
    items[1]["Layers"][0] = json!("other/layer.tar");
    for (gone, platform) in [(1, " for linux/amd64"), (2, "")] {
        let mut lacking = lacking.clone();
        let missing = lacking.remove(gone).0;
        let files = [&whole[..2], &lacking].concat();
        let manifest = |value: Vec<u8>| vec![("manifest.json".to_owned(), value)];
        let both = [files.clone(), manifest(items.to_string().into())].concat();
        let line = format!("image lacking:1{platform} is left out: the archive has no {missing}");
        assert_eq!(told(&both, None, &[]), [line]);
        let mut only = items.clone();
        only.as_array_mut().unwrap().remove(0);
        let only = [files, manifest(only.to_string().into())].concat();
        assert_eq!(
            fixture().refused(&only).to_string(),
            format!("the archive has no {missing}, which image lacking:1{platform} needs")
        );
    }
}

/// Where nothing is left of what was asked for, the error names the image and the blob.
#[test]
fn load_names_the_blob_that_the_wanted_image_lacks() {
    let refused = |gone: Sha256Digest, image: Option<&str>, platform: &str| {
        let (mut layout, _) = two_names();
        assert!(layout.blobs.remove(&gone).is_some());
        let fixture = fixture();
        let path = fixture.file("archive.tar", &tar(&layout.files()));
        let platforms: Vec<PlatformName> = platform.parse().into_iter().collect();
        let options = LoadOptions {
            image,
            platforms: &platforms,
            ..LoadOptions::default()
        };
        load_with(&fixture.store, &path, &options)
            .unwrap_err()
            .to_string()
    };
    let (_, [layer, config, manifest, of_one]) = two_names();
    for gone in [layer, config, manifest] {
        let expected = format!(
            "the archive has no {}, which image multi:1 for linux/s390x needs",
            part(gone)
        );
        assert_eq!(refused(gone, Some("multi:1 (linux/s390x)"), ""), expected);
        assert_eq!(refused(gone, None, "linux/s390x"), expected);
    }
    let expected = format!(
        "the archive has no {}, which image one:1 needs",
        part(of_one)
    );
    for name in ["one:1", "one:1 (linux/amd64)"] {
        assert_eq!(refused(of_one, Some(name), ""), expected);
    }
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
