//! What is refused, by which name, and that nothing is left of it.

use super::*;

#[test]
fn load_names_the_damaged_part() {
    let fixture = fixture();
    let mut layout = Layout::default();
    let image = layout.image(&[layer("a", "1")], "");
    layout.named(image, "app:1");
    let files = layout.files();
    for at in 0..3 {
        let mut damaged = files.clone();
        let middle = damaged[at].1.len() / 2;
        damaged[at].1[middle] ^= 0x20;
        let name = damaged[at].0.clone();
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Digest { name: part, .. } if part == name)
        );
        damaged[at].1.push(0);
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Size { name: part, .. } if part == name)
        );
        damaged.remove(at);
        assert!(
            matches!(fixture.refused(&damaged), ImageError::Missing { name: part, .. } if part == name)
        );
    }
}

/// `inspect` and `commit` read all of it later.
#[test]
fn load_refuses_a_configuration_that_could_not_be_shown() {
    let fixture = fixture();
    let layers = [layer("a", "1")];
    for (field, reason) in [
        (
            format!("{}1{}", "[".repeat(200), "]".repeat(200)),
            "recursion limit",
        ),
        ("1e999".to_owned(), "out of range"),
    ] {
        let mut files = docker_archive(&layers, &json!(["app:1"]));
        let config = String::from_utf8(files[1].1.clone()).unwrap();
        files[1].1 = config
            .replacen('{', &format!("{{\"extra\":{field},"), 1)
            .into();
        let name = format!("{}.json", digest(&files[1].1).hex());
        files[2].1 = json!([{ "Config": name, "RepoTags": ["app:1"], "Layers": ["0/layer.tar"] }])
            .to_string()
            .into();
        files[1].0 = name;
        let error = fixture.refused(&files);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            error.to_string().contains("the configuration of"),
            "{error}"
        );
        assert!(source.contains(reason), "{source}");
    }
}

#[test]
fn load_names_the_layer_whose_diff_id_is_wrong() {
    let fixture = fixture();
    let mut files = docker_archive(&[layer("a", "1"), layer("b", "2")], &json!(["app:1"]));
    files[1].1 = layer("b", "3");
    assert!(matches!(
        fixture.refused(&files),
        ImageError::DiffId { number: 2, .. }
    ));
    files[1].1 = b"no tar at all".repeat(100);
    assert!(matches!(
        fixture.refused(&files),
        ImageError::Layer { number: 2, .. }
    ));
    for (bytes, compression) in [
        (&b"\x28\xb5\x2f\xfd zstd"[..], "zstd"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ] {
        files[1].1 = bytes.to_vec();
        let error = fixture.refused(&files);
        let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
            error.source()
        });
        assert!(
            causes.any(|cause| cause.to_string().contains(compression)),
            "{error}"
        );
    }
    let manifest = json!([{ "Config": files[2].0, "Layers": ["0/layer.tar"] }]);
    files[3].1 = manifest.to_string().into();
    assert!(matches!(
        fixture.refused(&files),
        ImageError::LayerCount {
            config: 2,
            manifest: 1
        }
    ));
}

#[test]
fn load_refuses_layers_that_do_not_stack() {
    let mut link = layer("a", "");
    link[..512].copy_from_slice(&header("a", 0, Some("nowhere")));
    // The same header as a hard link, its checksum one digit of type less.
    link[156] = b'1';
    let sum: u32 = link[..148]
        .iter()
        .chain(&[b' '; 8])
        .chain(&link[156..512])
        .map(|byte| u32::from(*byte))
        .sum();
    link[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let error = fixture().refused(&docker_archive(&[link], &json!(["app:1"])));
    assert!(
        matches!(error, ImageError::Store(crate::store::StoreError::Merge(_))),
        "{error:?}"
    );
}

#[test]
fn load_says_what_a_foreign_file_is() {
    let fixture = fixture();
    let what = |path: &std::path::Path| match load(&fixture.store, path).unwrap_err() {
        ImageError::NotAnArchive { what, .. } | ImageError::Truncated { what, .. } => what,
        other => panic!("{other:?}"),
    };
    assert!(what(&fixture.file("text", &b"hello\n".repeat(1000))).contains("not a tar"));
    assert!(what(&fixture.file("empty", b"")).contains("too short"));
    assert!(
        what(&fixture.file("root.tar", &layer("etc/passwd", "root"))).contains("root file system")
    );
    assert!(what(&fixture.file("other.tar", &layer("x", ""))).contains("neither"));
    assert!(what(fixture.dir.path()).contains("neither"));
    let of_docker_1_9 = [
        ("0a/VERSION", b"1.0".to_vec()),
        ("0a/json", br#"{"id": "0a", "os": "linux"}"#.to_vec()),
        ("0a/layer.tar", layer("a", "1")),
        ("repositories", br#"{"app": {"1": "0a"}}"#.to_vec()),
    ];
    let of_docker_1_9: Files = of_docker_1_9
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .into();
    assert!(what(&fixture.file("1.9.tar", &tar(&of_docker_1_9))).contains("older than 1.10"));
    // skopeo copy ... dir:
    fixture.file("dir/manifest.json", br#"{"schemaVersion": 2}"#);
    assert!(what(&fixture.dir.path().join("dir")).contains("dir:"));
    assert!(what("/dev/null".as_ref()).contains("device"));
    let archive = tar(&docker_archive(&[layer("a", "1")], &json!(["app:1"])));
    assert!(what(&fixture.file("cut.tar", &archive[..700])).contains("layer.tar"));
    assert!(what(&fixture.file("cut.tar", &archive[..2700])).contains("header"));
    let zipped = gzip(&archive);
    assert!(what(&fixture.file("cut.tar.gz", &zipped[..zipped.len() / 2])).contains("cut off"));
    assert!(matches!(
        load(&fixture.store, &fixture.dir.path().join("none")),
        Err(ImageError::Read { .. })
    ));
    assert!(matches!(
        fixture.refused(&vec![("manifest.json".to_owned(), b"[]".to_vec())]),
        ImageError::Empty
    ));
    assert!(matches!(
        fixture.refused(&vec![("manifest.json".to_owned(), b"[".to_vec())]),
        ImageError::Json { .. }
    ));
    fixture.untouched();
}

/// A configuration of spaces compresses to nothing, and may be named any number of times.
#[test]
fn load_limits_the_documents_of_an_archive() {
    let layers = [layer("a", "1")];
    let mut files = docker_archive(&layers, &json!(["app:1"]));
    files[1].0 = "config".to_owned();
    files[1].1.resize(15 << 20, b' ');
    let image = json!({ "Config": "config", "RepoTags": ["app:1"], "Layers": ["0/layer.tar"] });
    let fixture = fixture();
    files[2].1 = vec![image.clone(); 5]
        .into_iter()
        .collect::<Value>()
        .to_string()
        .into();
    let error = fixture.refused(&files).to_string();
    assert!(error.contains("documents"), "{error}");
    files[2].1 = vec![image; 4]
        .into_iter()
        .collect::<Value>()
        .to_string()
        .into();
    assert_eq!(fixture.load(&files).unwrap().len(), 1);
}

#[test]
fn load_refuses_a_windows_image() {
    let config: Vec<u8> =
        json!({ "architecture": "amd64", "os": "windows", "rootfs": { "diff_ids": [] } })
            .to_string()
            .into();
    let manifest = json!([{ "Config": "config", "RepoTags": ["app:1"], "Layers": [] }])
        .to_string()
        .into();
    let error = fixture().refused(&vec![
        ("config".to_owned(), config),
        ("manifest.json".to_owned(), manifest),
    ]);
    assert!(error.to_string().contains("windows"), "{error}");
}

#[test]
fn load_refuses_a_repeated_document_by_name() {
    let fixture = fixture();
    let archive = |content| docker_archive(&[layer("a", content)], &json!(["app:1"]));
    let confused = |files: &Files, name: &str| {
        assert!(
            matches!(fixture.refused(files), ImageError::Confused { name: part, .. } if part == name)
        );
    };
    let files = [archive("1"), archive("2")].concat();
    confused(&files, "manifest.json");
    for again in ["./manifest.json", "/manifest.json", "x/../manifest.json"] {
        let mut files = archive("1");
        let mut other = archive("2");
        other[2].0 = again.to_owned();
        files.extend(other);
        confused(&files, "manifest.json");
    }
    // a link is another content just as well
    let mut files = archive("1");
    files.push(("manifest.json -> other.json".to_owned(), Vec::new()));
    files.push(("other.json".to_owned(), archive("2")[2].1.clone()));
    confused(&files, "manifest.json");
    for name in ["index.json", "oci-layout"] {
        let mut layout = Layout::default();
        let image = layout.image(&[layer("a", "1")], "");
        layout.named(image, "app:1");
        let mut files = layout.files();
        let again = files.iter().find(|(file, _)| file == name).unwrap().clone();
        files.push(again);
        confused(&files, name);
    }
    // repeated layers are what their digests say, whichever is read
    let mut files = archive("1");
    files.push(files[0].clone());
    assert_eq!(tags(&fixture.load(&files).unwrap()), [["app:1"]]);
}

/// Any number of names or platforms can lead to one small index or manifest.
#[test]
fn load_refuses_more_manifests_and_images_than_its_limits() {
    let fixture = fixture();
    let mut many = Layout::default();
    let absent = json!({ "mediaType": OCI_MANIFEST, "digest": digest(b"absent"), "size": 6 });
    let index =
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": vec![absent; 300] });
    let index = many.blob(index.to_string().into(), OCI_INDEX);
    for number in 0..200 {
        many.named(index.clone(), &format!("app:{number}"));
    }
    let error = fixture.refused(&many.files()).to_string();
    assert!(error.contains("more than 50000 manifests"), "{error}");

    let mut many = Layout::default();
    let image = many.image(&[], "");
    for number in 0..4097 {
        many.named(image.clone(), &format!("app:{number}"));
    }
    let error = fixture.refused(&many.files()).to_string();
    assert!(error.contains("more than 4096 images"), "{error}");

    let images = vec![json!({ "Config": "config", "Layers": [] }); 4097];
    let files = vec![
        ("manifest.json".to_owned(), json!(images).to_string().into()),
        ("config".to_owned(), config(&[], "")),
    ];
    let error = fixture.refused(&files).to_string();
    assert!(error.contains("more than 4096 images"), "{error}");
}
