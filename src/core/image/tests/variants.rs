//! Archives as other tools than Docker write them, each with the names, the order and the layers
//! that its source code has.

use super::*;

/// Loads an archive of these layers and looks that the image has them.
fn loads(files: &Files, layers: &[Vec<u8>], name: &str) {
    let fixture = fixture();
    assert_eq!(tags(&fixture.load(files).unwrap()), [[name]]);
    let expected: Vec<_> = layers.iter().map(|layer| DiffId(digest(layer))).collect();
    assert_eq!(fixture.record(name).layers, expected);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

fn manifest(config: &str, tag: &str, layers: &[String]) -> (String, Vec<u8>) {
    let manifest = json!([{ "Config": config, "RepoTags": [tag], "Layers": layers }]);
    ("manifest.json".to_owned(), manifest.to_string().into())
}

fn directory(name: &str) -> (String, Vec<u8>) {
    (name.to_owned(), Vec::new())
}

/// go-containerregistry's `tarball.Write`, which kaniko's `--tar-path`, ko and crane use: the
/// configuration first, by its digest; compressed layers by theirs, a repeated one once; no
/// `repositories`.
#[test]
fn load_takes_what_kaniko_writes() {
    let layers = [layer("a", "1"), layer("b", "2"), layer("a", "1")];
    let config = config(&layers, "");
    let config_name = digest(&config).to_string();
    let mut files = vec![(config_name.clone(), config)];
    let mut names = Vec::new();
    for layer in &layers {
        let blob = gzip(layer);
        let name = format!("{}.tar.gz", digest(&blob).hex());
        if !names.contains(&name) {
            files.push((name.clone(), blob));
        }
        names.push(name);
    }
    files.push(manifest(&config_name, "registry.example/app:1", &names));
    loads(&files, &layers, "registry.example/app:1");
}

/// The shell script of Bazel's rules_oci: blobs of a layout, layers with a suffix, no index.
#[test]
fn load_takes_what_rules_oci_writes() {
    let layers = [layer("a", "1"), layer("b", "2")];
    let config = config(&layers, "");
    let config_name = format!("blobs/sha256/{}", digest(&config).hex());
    let mut files = vec![
        directory("blobs/"),
        directory("blobs/sha256/"),
        (config_name.clone(), config),
    ];
    let mut names = Vec::new();
    for layer in &layers {
        let blob = gzip(layer);
        let name = format!("blobs/sha256/{}.tar.gz", digest(&blob).hex());
        files.push((name.clone(), blob));
        names.push(name);
    }
    files.insert(0, manifest(&config_name, "app:1", &names));
    loads(&files, &layers, "app:1");
}

/// rules_docker's older `join_layers.py`: names from `./`, a layer under its own directory, and
/// what Docker 1.9 wanted beside it.
#[test]
fn load_takes_what_rules_docker_writes() {
    let layers = [layer("a", "1")];
    let config = config(&layers, "");
    let id = digest(&config).hex();
    let name = format!("{}/layer.tar", digest(&layers[0]).hex());
    let (_, manifest) = manifest(
        &format!("{id}.json"),
        "bazel/app:image",
        std::slice::from_ref(&name),
    );
    let files = vec![
        directory("./"),
        (format!("./{id}.json"), config),
        (format!("./{name}"), layers[0].clone()),
        (
            format!("./{}/VERSION", digest(&layers[0]).hex()),
            b"1.0".to_vec(),
        ),
        ("./repositories".to_owned(), b"{}".to_vec()),
        ("./manifest.json".to_owned(), manifest),
    ];
    loads(&files, &layers, "bazel/app:image");
}

/// Nix's `stream_layered_image.py`: a stream in which each layer is followed by a link to it, and
/// documents come last; names within layers begin with `./` or `/`.
#[test]
fn load_takes_what_nix_streams() {
    let layers = [
        layer("./nix/store/one", "1"),
        layer("/nix/store/two", "2"),
        layer("nix/store/top", "3"),
    ];
    let mut files = Files::new();
    let mut names = Vec::new();
    for layer in &layers {
        let name = format!("{}/layer.tar", digest(layer).hex());
        files.push((name.clone(), layer.clone()));
        names.push(name);
    }
    let config = config(&layers, "");
    let config_name = format!("{}.json", digest(&config).hex());
    files.push((config_name.clone(), config));
    files.push(manifest(&config_name, "app:nix", &names));
    loads(&files, &layers, "app:nix");
}

/// A configuration whose name says nothing, a layer by a link and by an absolute name.
#[test]
fn load_takes_names_of_any_spelling() {
    let layers = [layer("a", "1"), layer("b", "2")];
    let files = vec![
        manifest(
            "./image-config",
            "app:1",
            &["/layers/../layers/first".to_owned(), "second".to_owned()],
        ),
        ("/image-config".to_owned(), config(&layers, "")),
        ("layers/first -> /kept/1.tar".to_owned(), Vec::new()),
        ("./second -> kept/./2.tar".to_owned(), Vec::new()),
        ("/kept/1.tar".to_owned(), layers[0].clone()),
        ("kept/2.tar".to_owned(), layers[1].clone()),
    ];
    loads(&files, &layers, "app:1");
}

/// A layer of zstd frames: as zstd:chunked has it, a frame for each file and the table of contents
/// in skippable frames at the end; as the seekable format, its seek table there; as pzstd, a
/// skippable frame before each.
#[test]
fn load_takes_chunked_and_seekable_zstd() {
    let skippable = |magic: u32, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap();
        [&magic.to_le_bytes()[..], &length.to_le_bytes(), content].concat()
    };
    let frames = |tar: &[u8], before: &[u8]| {
        let frames = tar.chunks(700).map(|chunk| {
            let frame = zstd::encode_all(chunk, 3).unwrap();
            [before, &frame].concat()
        });
        frames.collect::<Vec<_>>().concat()
    };
    let tar = tar(&[
        ("large".to_owned(), vec![b'x'; 3000]),
        ("small".to_owned(), b"y".to_vec()),
    ]);
    let chunked = [
        frames(&tar, b""),
        skippable(0x184d_2a50, b"a table of contents"),
        skippable(0x184d_2a50, &[7; 64]),
    ];
    let seekable = [frames(&tar, b""), skippable(0x184d_2a5e, &[1; 21])];
    let parallel = frames(&tar, &skippable(0x184d_2a50, &[0, 0, 0, 9]));
    for blob in [chunked.concat(), seekable.concat(), parallel] {
        let layers = [tar.clone()];
        let mut files = docker_archive(&layers, &json!(["app:1"]));
        files[0].1.clone_from(&blob);
        let fixture = fixture();
        fixture.load(&files).unwrap();
        let recorded = fixture.record("app:1");
        assert_eq!(recorded.layers, [DiffId(digest(&tar))]);
        assert!(recorded.blobs.contains(&digest(&blob)), "kept as it came");
    }
}

/// Both images name the same file; one names another file of the same layer as well.
#[test]
fn load_takes_layers_that_images_share() {
    let (shared, own) = (layer("a", "shared"), layer("b", "own"));
    let configs = [
        config(std::slice::from_ref(&shared), ""),
        config(&[shared.clone(), own.clone(), shared.clone()], ""),
    ];
    let files = vec![
        ("shared.tar".to_owned(), shared.clone()),
        ("packed.tar.gz".to_owned(), gzip(&shared)),
        ("own.tar".to_owned(), own),
        ("one".to_owned(), configs[0].clone()),
        ("two".to_owned(), configs[1].clone()),
        (
            "manifest.json".to_owned(),
            json!([
                { "Config": "one", "RepoTags": ["one:1"], "Layers": ["shared.tar"] },
                { "Config": "two", "RepoTags": ["two:1"], "Layers": ["shared.tar", "own.tar", "packed.tar.gz"] },
            ])
            .to_string()
            .into(),
        ),
    ];
    let fixture = fixture();
    let loaded = fixture.load(&files).unwrap();
    assert_eq!(tags(&loaded), [["one:1"], ["two:1"]]);
    assert_eq!(fixture.record("two:1").layers.len(), 3);
    let layers = &fixture.tag("two:1").images[0].layers;
    let blobs = layers
        .iter()
        .map(|layer| layer.blob.as_ref().map(|blob| blob.digest));
    let expected = [None, None, Some(digest(&gzip(&shared)))];
    assert_eq!(blobs.collect::<Vec<_>>(), expected);
    assert_eq!(fixture.store.check(true).unwrap().problems, []);
}

/// moby tags the images of `manifest.json` one after the other, so the name moves on.
#[test]
fn load_gives_a_name_of_several_images_to_the_last() {
    let layers = [layer("a", "1"), layer("a", "2")];
    let configs = layers
        .each_ref()
        .map(|layer| config(std::slice::from_ref(layer), ""));
    let files = vec![
        ("1.tar".to_owned(), layers[0].clone()),
        ("2.tar".to_owned(), layers[1].clone()),
        ("one".to_owned(), configs[0].clone()),
        ("two".to_owned(), configs[1].clone()),
        (
            "manifest.json".to_owned(),
            json!([
                { "Config": "one", "RepoTags": ["app:1", "old:1"], "Layers": ["1.tar"] },
                { "Config": "one", "RepoTags": ["app:1"], "Layers": ["1.tar"] },
                { "Config": "two", "RepoTags": ["app:1"], "Layers": ["2.tar"] },
            ])
            .to_string()
            .into(),
        ),
    ];
    let fixture = fixture();
    let loaded = fixture.load(&files).unwrap();
    assert_eq!(tags(&loaded), [["old:1"], ["app:1"]]);
    let ids = configs.map(|config| ImageId(digest(&config)));
    assert_eq!([loaded[0].image, loaded[1].image], ids);
    assert_eq!(fixture.record("app:1").image, ids[1]);
}

/// More layers than load at a time, with files in common, in every compression.
#[test]
fn load_takes_many_layers_at_a_time() {
    let layers: Vec<_> = (0..40)
        .map(|number| {
            let own = format!("own {number}").into_bytes();
            tar(&[
                ("shared".to_owned(), b"in every layer".to_vec()),
                (
                    format!("large-{}", number % 3),
                    vec![b'l'; 200_000 + number % 3],
                ),
                (format!("own-{number}"), own),
            ])
        })
        .collect();
    let mut files = docker_archive(&layers, &json!(["app:1"]));
    for (number, (_, part)) in files.iter_mut().take(layers.len()).enumerate() {
        match number % 3 {
            0 => *part = gzip(part),
            1 => *part = zstd::encode_all(part.as_slice(), 3).unwrap(),
            _ => {}
        }
    }
    loads(&files, &layers, "app:1");

    // One of them is damaged: nothing stays, and it is the one that is named.
    let middle = files[20].1.len() / 2;
    files[20].1[middle] ^= 1;
    let error = fixture().refused(&files);
    assert!(
        matches!(
            &error,
            ImageError::Layer { number: 21, .. } | ImageError::DiffId { number: 21, .. }
        ),
        "{error}"
    );
}
