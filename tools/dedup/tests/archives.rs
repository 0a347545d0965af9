//! Images of archives beside those of a store.

use cowl_core::image::Loaded;
use cowl_core::store::{Store, Tag};

use super::{TestStore, put};
use crate::choose::Wanted;
use crate::gather::collect;
use crate::report::Report;
use crate::sharing::Sharing;

const BASE: &str = "f sh a10\nf motd b5";
const SHOP: [&str; 2] = [BASE, "f data s4"];
const BLOG: [&str; 2] = [BASE, "f copy s4\nf own o3"];
const OTHER: [&str; 1] = ["f old y30"];

/// A report on images of the store, and on those of archives, by path and name.
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
            others: Vec::new(),
            tags: vec![name.parse().unwrap()],
        };
        wanted.push(Wanted::Archive {
            path: (*path).to_owned(),
            images: vec![loaded],
            store: 1,
        });
    }
    let collection = collect(&[store, scratch], &wanted).unwrap();
    Report::new(&collection, &Sharing::of(&collection)).unwrap()
}

/// The same three images, all of the store, and two of them as archives: a layer is shared by its
/// diffID, a base is a base, and an image is one, wherever they come from.
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
        // The base of shop and blog, and other: no row puts shop on blog's base, which is its own.
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
    // Another image of the same name, in the store.
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
