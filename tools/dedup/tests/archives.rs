//! Images of archives together with those of a store.

use cowl_core::digest::{ImageId, Sha256Digest};
use cowl_core::image::Loaded;
use cowl_core::store::{Platform, Store, Tag};

use super::{TestStore, put};
use crate::choose::Wanted;
use crate::choose_sides;
use crate::gather::collect;
use crate::report::Report;
use crate::sharing::Sharing;
use crate::show::image_name;

const BASE: &str = "f sh a10\nf motd b5";
const SHOP: [&str; 2] = [BASE, "f data s4"];
const BLOG: [&str; 2] = [BASE, "f copy s4\nf own o3"];
const OTHER: [&str; 1] = ["f old y30"];

fn platform(architecture: &str) -> Platform {
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: String::new(),
    }
}

/// A report on images of the store and of archives, given by path and name.
fn report(named: &[&str], archives: &[(&str, &str, &[&str])]) -> Report {
    let TestStore {
        dir,
        stores: [store],
    } = TestStore::new();
    put(&store, &["shop"], &SHOP);
    put(&store, &["blog"], &BLOG);
    put(&store, &["other"], &OTHER);
    let scratch = Store::open_or_create(&dir.path().join("scratch")).unwrap();
    let mut wanted: Vec<Wanted> = named
        .iter()
        .map(|name| Wanted::Named((*name).to_owned()))
        .collect();
    for (path, name, layers) in archives {
        let loaded = Loaded {
            image: put(&scratch, &[name], layers),
            platform: platform("amd64"),
            others: Vec::new(),
            tags: vec![name.parse().unwrap()],
        };
        wanted.push(Wanted::Archive {
            path: (*path).to_owned(),
            images: vec![loaded],
            of_platform: false,
            store: 1,
        });
    }
    let collection = collect(&[store, scratch], &wanted).unwrap();
    Report::new(&collection, &Sharing::of(&collection)).unwrap()
}

/// The same three images, all in the store, and two of them in archives: layers, bases and images
/// are identified by their digests, wherever they are.
#[test]
fn figures_do_not_depend_on_where_an_image_is() {
    let of_store = report(&["shop", "blog", "other"], &[]);
    let beside = report(
        &["shop"],
        &[("./b.tar", "blog", &BLOG), ("./o.tar", "other", &OTHER)],
    );
    // The base has 15 bytes in two files; s4 is in a layer of each.
    for report in [&of_store, &beside] {
        let amounts = [report.in_shared_layers, report.in_other_layers];
        let figures = amounts.map(|amount| (amount.contents, amount.bytes));
        assert_eq!(figures, [(2, 15), (1, 4)]);
        let [missed] = &report.duplicates[..] else {
            panic!("s4 alone: {:?}", report.duplicates)
        };
        assert_eq!((missed.bytes, missed.layers, missed.images), (4, 2, 2));
        // The bases are that of shop and blog, and other's: no row puts shop on blog's base, which
        // is its own.
        let rebases = report.rebases.iter();
        let rebases: Vec<_> = rebases
            .map(|row| (row.layers_out, row.layers_in, row.freed.bytes))
            .collect();
        assert_eq!(rebases, [(1, 1, 0), (1, 1, 0), (1, 1, 30)]);
    }
    let figures = |report: &Report| -> Vec<_> {
        let rows = report.images.iter();
        rows.map(|row| (row.exclusive.bytes, row.shared.bytes, row.fair_share_bytes))
            .collect()
    };
    assert_eq!(figures(&beside), figures(&of_store));
}

#[test]
fn an_image_in_several_places_is_one_and_names_them() {
    let names = |report: &Report| -> Vec<String> {
        let rows = report.images.iter();
        rows.map(|row| row.name.clone()).collect()
    };
    let both = report(&["shop"], &[("./shop.tar", "shop", &SHOP)]);
    assert_eq!(names(&both), ["shop:latest (store, ./shop.tar)"]);
    let twice = [
        ("./one.tar", "new", OTHER_NEW),
        ("./two.tar", "new", OTHER_NEW),
    ];
    let twice = report(&[], &twice);
    assert_eq!(names(&twice), ["new:latest (./one.tar, ./two.tar)"]);
    // Another image with the same name in the store.
    let alike = report(&[], &[("./one.tar", "shop", OTHER_NEW)]);
    assert_eq!(names(&alike), ["shop:latest (./one.tar)"]);
}

const OTHER_NEW: &[&str] = &["f new n7"];

/// A tag for two platforms lists both; a comparison takes the first, or either by its id.
#[test]
fn a_tag_with_two_platforms_lists_both() {
    let store = TestStore::new();
    store.put(&["one"], &["f a a10"]);
    let arm = store.put(&["two"], &["f b b10"]);
    let tags = store.store().tags().unwrap().tags;
    let mut images: Vec<_> = tags.into_iter().flat_map(|tag| tag.images).collect();
    images.sort_by_key(|image| image.config == arm);
    images[1].platform.architecture = "arm64".to_owned();
    let tag = Tag {
        reference: Some("multi".parse().unwrap()),
        target: None,
        images,
    };
    let transaction = store.store().begin().unwrap();
    transaction.publish(&[tag]).unwrap();
    let chosen = |wanted: Wanted| -> Vec<String> {
        let collection = collect(&store.stores, &[wanted]).unwrap();
        collection
            .chosen()
            .map(|image| image.name.clone())
            .collect()
    };
    let (first, second) = (
        "multi:latest, one:latest",
        "multi:latest (linux/arm64), two:latest",
    );
    assert_eq!(chosen(Wanted::Named("multi".to_owned())), [second, first]);
    assert_eq!(chosen(Wanted::First("multi".to_owned())), [first]);
    let id = arm.0.hex();
    assert_eq!(chosen(Wanted::First(id)), [second]);
}

/// The text that reports append to a name may be a platform, in any spelling, or a place, which is
/// not a valid argument: the error says what is.
#[test]
fn a_place_after_a_name_gets_a_hint() {
    let store = TestStore::new();
    store.put(&["same:1"], &["f a a10"]);
    let images = store.store().tags().unwrap().tags[0].images.clone();
    let of = platform(&images[0].platform.architecture);
    let find = |name: &str| {
        let wanted = [Wanted::Named(name.to_owned())];
        let found = collect(&store.stores, &wanted).map(|found| found.chosen().count());
        found.map_err(|error| error.to_string())
    };
    let platform = format!("same:1 (Linux/{})", of.architecture);
    assert_eq!(find(&platform), Ok(1));
    let error = |name: &str| find(name).unwrap_err();
    assert_eq!(
        error("same:1 (store, ./h12.tar)"),
        "no image same:1 (store, ./h12.tar) in the store; the image of an archive is read as ./h12.tar:same:1"
    );
    assert_eq!(
        error("same:1 (linux/mips)"),
        "no image same:1 (linux/mips) in the store; `cowl dedup same:1` lists its platforms"
    );
}

/// Two names, one of them for two platforms: what is listed can be selected.
#[test]
fn images_of_an_archive_are_listed_with_their_platforms() {
    let id = |byte: u8| ImageId(Sha256Digest::of(&[byte]));
    let loaded = |byte: u8, name: &str, others: &[&str]| Loaded {
        image: id(byte),
        platform: platform("amd64"),
        others: (byte + 1..)
            .zip(others)
            .map(|(b, name)| (id(b), platform(name)))
            .collect(),
        tags: name.parse().into_iter().collect(),
    };
    let mut images = [
        loaded(1, "multi:1", &["arm64"]),
        loaded(3, "one:1", &[]),
        loaded(4, "none:1", &["s390x"]),
    ];
    images[2].tags.clear();
    let error = choose_sides("./multi.tar", &mut images, 1)
        .unwrap_err()
        .to_string();
    let ids = [4, 5]
        .map(|byte| image_name(&id(byte).to_string()))
        .join(", ");
    assert_eq!(
        error,
        format!(
            "a comparison is of two images, and ./multi.tar has 5, not 2: multi:1 (linux/amd64), multi:1 (linux/arm64), one:1, {ids}; name one as './multi.tar:multi:1 (linux/amd64)'"
        )
    );
}
