//! Figures of images and of the store.

use std::path::Path;

use cowl_core::digest::ObjectId;
use cowl_core::store::PinLife;

use super::{TestStore, replace};
use crate::cleanup;
use crate::report::Report;
use crate::sharing::{Amount, Sharing};

const fn amount(contents: u64, bytes: u64) -> Amount {
    Amount { contents, bytes }
}

/// Sizes and blocks of the files in a directory and its subdirectories, as `find -type f` would sum
/// them.
fn on_disk(objects: &Path) -> (u64, u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let entries = |dir: &Path| -> Vec<_> {
        std::fs::read_dir(dir)
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    let dirs = entries(objects);
    let files = dirs.iter().flat_map(|dir| entries(&dir.path()));
    files.fold((0, 0, 0), |(files, bytes, blocks), file| {
        let meta = file.metadata().unwrap();
        (files + 1, bytes + meta.len(), blocks + meta.blocks())
    })
}

const BASE: &str = "f sh a10\nh sh.link sh\nf motd b5";

fn shop_and_blog() -> TestStore {
    let store = TestStore::new();
    store.put(&["shop", "shop:1"], &[BASE, "f motd c2\nf data s4"]);
    store.put(&["blog"], &[BASE, "f copy s4\nf again s4\nf own o3"]);
    store
}

/// shop: 10 + 5 below, 2 + 4 above; the upper motd hides the lower. blog: 10 + 5 below, 4 + 4 + 3
/// above, of which one 4 is an object already. Both hold a10, b5 and s4: 19 bytes, of which 15 in
/// the base. Kept: a10 b5 c2 s4 o3 = 24.
#[test]
fn report_sums_match_the_files_on_disk() {
    let store = shop_and_blog();
    let report = store.report(&[]);
    let [blog, shop] = &report.images[..] else {
        panic!("two images")
    };
    assert_eq!(
        (blog.name.as_str(), shop.name.as_str()),
        ("blog:latest", "shop:1, shop:latest")
    );
    assert_eq!([shop.logical_bytes, blog.logical_bytes], [21, 26]);
    assert_eq!([shop.visible_bytes, blog.visible_bytes], [16, 26]);
    assert_eq!([shop.stored, blog.stored], [amount(4, 21), amount(4, 22)]);
    assert_eq!(
        [shop.exclusive, blog.exclusive],
        [amount(1, 2), amount(1, 3)]
    );
    assert_eq!([shop.shared, blog.shared], [amount(3, 19); 2]);
    assert_eq!(report.shared, amount(3, 19));
    assert_eq!(report.in_shared_layers, amount(2, 15));
    assert_eq!(report.in_other_layers, amount(1, 4));
    assert_eq!(report.kept, amount(5, 24));
    assert_eq!(report.saved_bytes, 21 + 22 - 24);
    assert_eq!(report.unattributed_bytes, 0);
    // 19 / 2 is 9.5 each: the byte left over goes to the first image by name.
    assert_eq!(
        [blog.fair_share_bytes, shop.fair_share_bytes],
        [3 + 10, 2 + 9]
    );
    let matrix = &report.matrix[0];
    assert_eq!((matrix.a.as_str(), matrix.bytes), ("blog:latest", 19));
    assert!((matrix.jaccard - 19.0 / 24.0).abs() < 1e-12, "{matrix:?}");
    let (files, bytes, blocks) = on_disk(&store.dir.path().join("store/objects"));
    assert_eq!([report.kept.contents, report.kept.bytes], [files, bytes]);
    let disk = &report.store;
    assert_eq!(
        [disk.objects, disk.bytes, disk.blocks],
        [files, bytes, blocks]
    );
    let listed: u64 = report
        .shared_objects
        .iter()
        .map(|id| {
            store
                .store()
                .open_object(*id)
                .unwrap()
                .metadata()
                .unwrap()
                .len()
        })
        .sum();
    assert_eq!(listed, 19);
}

/// Nothing, everything, and one byte in common.
#[test]
fn images_that_share_nothing_everything_and_one_byte() {
    let store = TestStore::new();
    store.put(&["a"], &["f x a100\nf y z1"]);
    store.put(&["b"], &["f x b50"]);
    store.put(&["c"], &["f x a100\nf y z1", "d empty"]);
    store.put(&["d"], &["f q d9\nf z z1"]);
    let report = store.report(&[]);
    let pairs: Vec<_> = report
        .matrix
        .iter()
        .map(|row| {
            (
                row.a.replace(":latest", "") + &row.b.replace(":latest", ""),
                row.bytes,
            )
        })
        .collect();
    let expected = [
        ("ab", 0),
        ("ac", 101),
        ("ad", 1),
        ("bc", 0),
        ("bd", 0),
        ("cd", 1),
    ];
    assert_eq!(
        pairs,
        expected.map(|(names, bytes)| (names.to_owned(), bytes))
    );
    assert!(
        (report.matrix[1].jaccard - 1.0).abs() < 1e-12,
        "a and c hold the same"
    );
    assert!(
        report.matrix[0].jaccard.abs() < 1e-12,
        "a and b have nothing in common"
    );
    // z1 is in three images: a third each, and the byte goes to the first image.
    let fair: Vec<u64> = report
        .images
        .iter()
        .map(|image| image.fair_share_bytes)
        .collect();
    assert_eq!(fair, [51, 50, 50, 9]);
    assert_eq!(fair.iter().sum::<u64>(), report.kept.bytes);
}

#[test]
fn unchosen_images_count_as_sharers() {
    let store = shop_and_blog();
    let report = store.report(&["shop"]);
    assert_eq!(report.images.len(), 1);
    assert_eq!(report.images[0].exclusive, amount(1, 2));
    assert_eq!(report.images[0].fair_share_bytes, 11);
    assert_eq!(report.kept, amount(4, 21));
    assert_eq!(
        report.shared,
        amount(0, 0),
        "of the listed images no two share"
    );
    assert_eq!(
        report.unattributed_bytes, 0,
        "what blog alone holds is blog's"
    );
}

#[test]
fn images_keep_the_order_of_the_arguments() {
    let store = TestStore::new();
    for name in ["a", "b", "c"] {
        store.put(&[name], &[&format!("f x {name}9")]);
    }
    let collection = store.collect(&["c", "a:latest"]).unwrap();
    let order: Vec<_> = collection
        .images
        .iter()
        .map(|image| (image.name.as_str(), image.chosen))
        .collect();
    assert_eq!(
        order,
        [("c:latest", true), ("a:latest", true), ("b:latest", false)]
    );
    let error = store.collect(&["d"]).err().unwrap();
    assert!(
        error.to_string().starts_with("no image d:latest"),
        "{error}"
    );
    let id = collection.images[2].id.0.hex();
    let by_id = store.collect(&[id.get(..12).unwrap()]).unwrap();
    assert_eq!(by_id.images[0].name, "b:latest");
}

/// The base of both has 15 bytes; shop has c2 and blog o3 alone, and s4 is in both.
#[test]
fn layers_show_what_exists_below_and_elsewhere() {
    let report = shop_and_blog().report(&["shop"]);
    let [base, own] = &report.layers[..] else {
        panic!("two layers")
    };
    assert_eq!(
        (base.number, base.created_by.as_str(), base.bytes),
        (1, "step 1", 15)
    );
    assert_eq!(
        (
            base.changes.added,
            base.changes.changed,
            base.changes.deleted
        ),
        (3, 0, 0)
    );
    assert_eq!((base.below, base.elsewhere), (amount(0, 0), amount(0, 0)));
    assert_eq!(
        (own.bytes, own.below, own.elsewhere),
        (6, amount(0, 0), amount(1, 4))
    );
    assert_eq!(
        (own.changes.added, own.changes.changed, own.changes.deleted),
        (1, 1, 0)
    );
}

/// s4 is in a layer of each image: sharing by layer keeps 4 bytes more.
#[test]
fn files_in_several_layers_are_listed() {
    let report = shop_and_blog().report(&[]);
    let [row] = &report.duplicates[..] else {
        panic!("one file: {:?}", report.duplicates)
    };
    assert_eq!((row.size, row.layers, row.images, row.bytes), (4, 2, 2, 4));
    assert!(
        ["/data", "/copy", "/again"].contains(&row.path.as_str()),
        "{row:?}"
    );
}

/// Removes each image of a new store in turn: gc frees what was predicted, also while a container
/// keeps a layer.
#[test]
fn gc_frees_what_the_removal_row_predicts() {
    for (name, pinned) in [("shop", false), ("blog", false), ("shop", true)] {
        let store = shop_and_blog();
        let id = store.put(&["third"], &[BASE, "f data s4\nf alone q77"]);
        if pinned {
            let collection = store.collect(&["third"]).unwrap();
            let layers: Vec<_> = collection
                .stack(&collection.images[0].layers)
                .map(|layer| layer.diff)
                .collect();
            store
                .store()
                .pin("container", PinLife::Permanent, "a test", &layers, &[])
                .unwrap();
        }
        let removed = if pinned { "third" } else { name };
        let report = store.report(&[removed]);
        let said = report.removals[0].freed;
        let expected = match (removed, pinned) {
            ("shop", _) => amount(1, 2),
            ("blog", _) => amount(1, 3),
            _ => amount(0, 0),
        };
        assert_eq!(said, expected, "{removed}");
        cleanup::release();
        let removed = match removed {
            "third" => id,
            _ => store.collect(&[removed]).unwrap().images[0].id,
        };
        cleanup::release();
        store.store().untag_image(removed).unwrap();
        let freed = store.store().gc().unwrap().objects;
        assert_eq!(amount(freed.number, freed.bytes), said);
    }
}

/// Two images on one base, one on another: moved to the other base, the third image frees its own
/// base, but for k8, which its upper layer has too. The two do not: each keeps the base of the
/// other. A report's lease ends with it, so it does not count as a holder; a mount's does.
#[test]
fn concurrent_reports_are_equal() {
    let store = TestStore::new();
    store.put(&["a"], &["f x a5000"]);
    let alone = store.report(&[]);
    assert_eq!(alone.removals[0].freed, amount(1, 5000));
    // The first report's lease is held until this process ends.
    assert_eq!(store.report(&[]).removals[0].freed, amount(1, 5000));
    let layers = store.store().tags().unwrap().tags[0].images[0].diff_ids();
    let _mounted = store.store().lease("0123abcd", None, &layers).unwrap();
    assert_eq!(store.report(&[]).removals[0].freed, amount(0, 0));
}

#[test]
fn rebases_free_what_only_the_base_had() {
    let store = TestStore::new();
    store.put(&["a"], &["f base x100", "f a a1"]);
    store.put(&["b"], &["f base x100", "f b b1"]);
    store.put(&["c"], &["f old y30\nf keep k8", "f c k8"]);
    let report = store.report(&[]);
    let rows: Vec<_> = report
        .rebases
        .iter()
        .map(|row| (row.image.as_str(), row.onto.as_str(), row.freed))
        .collect();
    let expected = [
        ("a:latest", "c:latest", amount(0, 0)),
        ("b:latest", "c:latest", amount(0, 0)),
        ("c:latest", "a:latest", amount(1, 30)),
    ];
    assert_eq!(rows, expected);
}

/// A lease keeps an image from gc while the report is made, and ends with it.
#[test]
fn gc_during_a_report_frees_nothing_of_it() {
    let store = shop_and_blog();
    let collection = store.collect(&[]).unwrap();
    for image in &collection.images {
        store.store().untag_image(image.id).unwrap();
    }
    assert_eq!(store.store().gc().unwrap().objects.number, 0);
    cleanup::release();
    assert_eq!(store.store().gc().unwrap().objects.number, 5);
}

/// Contents: A of 10,000 x, B of 10,000 x and one y. Fixed 4 KiB: A is xxxx xxxx + 1,808 x; B is
/// xxxx xxxx + 1,808 x and a y: distinct are 4,096 x, 1,808 x, 1,808 x and y: 4096 + 1808 + 1809 =
/// 7,713 bytes in 3 chunks, referenced 6 times. Fixed 64 KiB and 1 MiB: both whole.
#[test]
fn ladder_counts_distinct_chunks() {
    let store = TestStore::new();
    store.put(&["a"], &["f x x10000\nf again x10000"]);
    store.put(&["b"], &["f y x10000"]);
    store.put(&["c"], &["f z x10000y1"]);
    let collection = store.collect(&[]).unwrap();
    let progress = crate::progress::Progress::default();
    let limits = crate::ladder::Limits::default();
    let climb = |limits| {
        let climbed = crate::ladder::climb(&collection, &store.stores, limits, &progress).unwrap();
        assert_eq!(climbed.unreadable, []);
        climbed.rungs
    };
    let ladder = climb(limits);
    let row = |unit: &str| {
        let rung = ladder.iter().find(|rung| rung.unit == unit).unwrap();
        [rung.chunks, rung.bytes, rung.index_bytes]
    };
    // Three layers of 20,000, 10,000 and 10,001 bytes.
    assert_eq!(row("layer"), [3, 40_001, 120]);
    assert_eq!(row("file"), [2, 20_001, 80]);
    assert_eq!(row("fixed-4KiB"), [3, 7713, 6 * 40]);
    assert_eq!(row("fixed-64KiB"), [2, 20_001, 80]);
    assert_eq!(row("fixed-1MiB"), [2, 20_001, 80]);
    // Content-defined: runs of one letter have no cut points, so chunks have the maximum of 4 x 4
    // KiB.
    assert_eq!(row("fastcdc-4KiB"), [2, 20_001, 80]);
    for rung in &ladder {
        let zstd = rung.zstd_bytes.unwrap();
        assert!(zstd > 0 && zstd < 500, "{rung:?}");
        assert!(rung.error.abs() < f64::EPSILON, "{rung:?}");
    }
    let limits = crate::ladder::Limits {
        zstd_bytes: None,
        ..limits
    };
    for (rung, plain) in ladder.into_iter().zip(climb(limits)) {
        let expected = crate::ladder::Rung {
            zstd_bytes: None,
            ..rung
        };
        assert_eq!(plain, expected);
    }
}

/// Two images share r and m; s has a wrong length, w another content and m is gone. The rest is
/// what a store of r, u and v would have: layers of 5,000 + 9 + 9 and 5,000 + 7 bytes.
#[test]
fn the_ladder_leaves_out_and_reports_unreadable_contents() {
    let store = TestStore::new();
    store.put(&["a"], &["f r r5000\nf m m300\nf u u9\nf s s700\nf t u9"]);
    store.put(
        &["b"],
        &["f r r5000\nf m m300\nf again m300\nf v v7\nf w w800"],
    );
    let object = |letter: &str, length: usize| {
        let id = ObjectId::of(letter.repeat(length).as_bytes());
        store.store().object_path(id)
    };
    std::fs::remove_file(object("m", 300)).unwrap();
    std::fs::remove_file(object("s", 700)).unwrap();
    std::fs::File::create(object("s", 700))
        .unwrap()
        .set_len(699)
        .unwrap();
    replace(&object("w", 800), &"x".repeat(800));
    let collection = store.collect(&[]).unwrap();
    let sharing = Sharing::of(&collection);
    let mut report = Report::new(&collection, &sharing).unwrap();
    let (limits, progress) = Default::default();
    let ladder = crate::ladder::climb(&collection, &store.stores, limits, &progress).unwrap();
    report.set_ladder(&collection, &sharing, ladder);
    let row = |unit: &str| {
        let rung = report.ladder.iter().find(|rung| rung.unit == unit).unwrap();
        assert!(rung.error + rung.zstd_error <= 0.0, "{rung:?}");
        [rung.chunks, rung.bytes, rung.index_bytes]
    };
    assert_eq!(row("layer"), [2, 5018 + 5007, 80]);
    assert_eq!(row("file"), [3, 5016, 120]);
    // r is cut once: 4,096 and 904.
    assert_eq!(row("fixed-4KiB"), [4, 5016, 160]);
    assert_eq!(row("fastcdc-64KiB"), [3, 5016, 120]);
    let mut lost: Vec<_> = report
        .unreadable
        .iter()
        .map(|row| (row.bytes, row.images.join(", "), row.error.as_str()))
        .collect();
    lost.sort_unstable();
    let expected = [
        (300, "a:latest, b:latest".to_owned(), "is missing"),
        (
            700,
            "a:latest".to_owned(),
            "is damaged: its length is wrong",
        ),
        (
            800,
            "b:latest".to_owned(),
            "is damaged: its digest is not its name",
        ),
    ];
    assert_eq!(lost, expected);
}

/// With only a fraction of the bytes compressed, and small sets, the estimates are within three
/// standard errors of a run that compresses everything. The layers are exact.
#[test]
fn ladder_estimates_within_its_stated_errors() {
    let store = TestStore::new();
    let file = |n: usize| format!("f n{n} a{}b{}c{}", 900 + 37 * n, n % 7 * 500, 1 + n);
    let files: Vec<String> = (0..600).map(file).collect();
    store.put(&["a"], &[files.join("\n").as_str()]);
    let collection = store.collect(&[]).unwrap();
    let progress = crate::progress::Progress::default();
    let climb = |chunks, zstd_bytes| {
        let limits = crate::ladder::Limits { chunks, zstd_bytes };
        let ladder = crate::ladder::climb(&collection, &store.stores, limits, &progress);
        ladder.unwrap().rungs
    };
    let exact = climb(1 << 16, Some(u64::MAX >> 32));
    let within = |estimate: u64, truth: u64, error: f64| {
        let millionths = (estimate.abs_diff(truth) * 1_000_000).div_ceil(truth);
        f64::from(u32::try_from(millionths).unwrap()) / 1e6 <= error
    };
    let zstd = |rung: &crate::ladder::Rung| rung.zstd_bytes.unwrap();
    for (rung, truth) in climb(256, Some(2_000_000)).iter().zip(&exact) {
        assert!(truth.error + truth.zstd_error <= 0.0, "{truth:?}");
        if rung.unit == "layer" {
            assert_eq!(rung, truth);
            continue;
        }
        assert!(rung.zstd_error > 0.0 && rung.zstd_error < 0.5, "{rung:?}");
        assert!(
            within(rung.bytes, truth.bytes, 1.5 * rung.error + 1e-6),
            "{rung:?}, {truth:?}"
        );
        assert!(
            within(zstd(rung), zstd(truth), 1.5 * rung.zstd_error),
            "{rung:?}, {truth:?}"
        );
    }
}
