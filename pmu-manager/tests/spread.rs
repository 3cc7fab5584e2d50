//! `pmm` and regions that are spread over four real units, some of which die.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod site;

use pmu_auth::Identity;
use pmu_client::{ConnectOptions, Unit};
use serde_json::{Value, json};
use site::Site;

const CREATE: &str = "region create job --mode overwrite --layout parity:3+1 \
     --units unit-1,unit-2,unit-3,unit-4 --capacity 576KiB --subsegment 64KiB --sets 2";

#[test]
fn d05_a_real_region_prints_figure_three() {
    let site = Site::new();
    site.ok(CREATE);
    let page = site.ok("region show job --placement");
    let table: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "Placement")
        .skip(1)
        .take(4)
        .collect();
    let expected = [
        "GROUP  unit-1  unit-2  unit-3  unit-4",
        "0      0       1       2       P(0-2)",
        "1      P(3-5)  3       4       5",
        "2      8       P(6-8)  6       7",
    ];
    assert_eq!(
        table.iter().map(|line| line.trim_end()).collect::<Vec<_>>(),
        expected,
        "{page}"
    );
    let (_, shown) = site.json("region show job --placement");
    assert_eq!(shown["spread"]["capacity_bytes"], 576 << 10);
    assert_eq!(
        shown["placement"][0],
        json!({"unit": "unit-1", "index": 0, "shards": [
            {"group": 0, "row": 0, "kind": "data", "subsegments": [0]},
            {"group": 1, "row": 1, "kind": "parity", "subsegments": [3, 4, 5]},
            {"group": 2, "row": 2, "kind": "data", "subsegments": [8]},
        ]})
    );
    let (_, shown) = site.json("region show job --placement --groups 1 --unit unit-4");
    assert_eq!(shown["unit"], "unit-4");
    assert_eq!(
        shown["placement"][3]["shards"],
        json!([{"group": 0, "row": 0, "kind": "parity", "subsegments": [0, 1, 2]}])
    );
}

#[test]
fn d01_who_does_not_know_the_requests_of_a_unit_is_named_and_nothing_is_created() {
    let site = Site::new();
    let process = site.distributor("other");
    for line in [
        &CREATE.replace("unit-4", "other"),
        "region create job --mode append --layout mirror:2 --units other,unit-2 --size 256KiB",
        "unit show other",
    ] {
        let errors = site.fails(line, 1);
        assert!(errors.contains("unit other"), "{errors}");
        assert!(errors.contains("of another version than pmm"), "{errors}");
    }
    site.ok("unit remove other");
    assert!(site.holders("job").is_empty());
    let address = process.control_address().to_string();
    site.ok("ca issue trainer --role client --out HOME/trainer");
    let identity = Identity::load(&site.path("trainer")).unwrap();
    let error = Unit::connect(&address, &identity, &ConnectOptions::default()).unwrap_err();
    assert!(error.to_string().contains("of another version"), "{error}");
    site.end(process);
}

#[test]
fn d01_members_are_created_listed_granted_and_deleted_together() {
    let mut site = Site::new();
    let (_, created) = site.json(CREATE);
    assert_eq!(created["layout"], "parity:3+1");
    assert_eq!(
        (&created["units_min"], &created["generation"]),
        (&json!(3), &json!(1))
    );
    assert_eq!(Site::states(&created), ["active"; 4]);
    site.ok("region create alone --unit unit-1 --mode append --size 64KiB");
    let list = site.ok("region list");
    assert!(
        list.contains("LAYOUT") && list.contains("append     single"),
        "{list}"
    );
    assert_eq!(list.matches("overwrite  parity:3+1").count(), 4, "{list}");

    let (exit, granted) = site.json("region grant job trainer:read,write");
    assert_eq!((exit, &granted["done"]), (0, &json!(4)), "{granted}");
    assert!(granted["effective"].is_null());
    let (_, on_third) = site.json("region show job --unit unit-3");
    assert_eq!(on_third["grants"][0]["principal"], "trainer");
    let (exit, revoked) = site.json("region revoke job trainer");
    assert_eq!((exit, &revoked["done"]), (0, &json!(4)), "{revoked}");

    let asked = site.fails("region delete job", 2);
    assert!(
        asked.contains("units unit-1, unit-2, unit-3, unit-4"),
        "{asked}"
    );
    site.ok("region delete job --yes --unit unit-2");
    let (_, shown) = site.json("region show job");
    assert_eq!(
        Site::states(&shown["spread"]),
        ["active", "missing", "active", "active"]
    );
    assert_eq!(
        (&shown["spread"]["active"], &shown["spread"]["too_few_to"]),
        (&json!(3), &json!([]))
    );
    site.kill(4);
    let page = site.ok("region show job");
    assert!(
        page.contains(
            "2 of 4 units: too few to commit (3 are needed), to read the set (3 are needed)"
        ),
        "{page}"
    );
    let (exit, deleted) = site.json("region delete job --yes");
    assert_eq!((exit, &deleted["done"]), (6, &json!(2)), "{deleted}");
    assert_eq!(
        Site::states(&deleted),
        ["done", "missing", "done", "unreachable"]
    );
    let plain = site.fails("region show alone", 2);
    assert!(
        plain.contains("which unit?") && plain.contains("alone is on unit-1"),
        "{plain}"
    );
    let (exit, list) = site.json("region list");
    assert_eq!((exit, &list["missing"][0]["unit"]), (6, &json!("unit-4")));
    assert_eq!(list["regions"][0]["region"], "alone", "{list}");
    site.fails("region show nowhere", 6);
    site.ok("unit remove unit-4");
    let plain = site.fails("region show nowhere", 4);
    assert!(plain.contains("no unit has a region nowhere"), "{plain}");
    assert!(
        site.ok("region show alone --unit unit-1")
            .contains("append")
    );
}

#[test]
fn d01_what_one_unit_refuses_stays_on_none() {
    let mut site = Site::new();
    site.ok("region create job --unit unit-3 --mode append --size 64KiB");
    let error = site.fails(CREATE, 1);
    assert!(
        error.contains("can't be created on unit unit-3, and so on none")
            && error.contains("NAME_TAKEN"),
        "{error}"
    );
    assert_eq!(site.holders("job"), ["unit-3"]);
    let (_, stranger) = site.json("region show job --unit unit-3");
    assert_eq!(
        (&stranger["mode"], &stranger["spread"]),
        (&json!("append"), &Value::Null)
    );
    site.ok("region delete job --yes --unit unit-3");

    site.ok("region create full --unit unit-2 --mode append --size 3600KiB");
    let error = site.fails(CREATE, 1);
    assert!(
        error.contains("unit-2") && error.contains("POOL_FULL"),
        "{error}"
    );
    assert_eq!(site.holders("job"), [""; 0]);
    site.ok("region delete full --yes --unit unit-2");

    site.kill(4);
    let error = site.fails(CREATE, 6);
    assert!(
        error.contains("unit unit-4") && error.contains("can't be reached"),
        "{error}"
    );
    site.ok("unit remove unit-4");
    assert_eq!(site.holders("job"), [""; 0]);
}

#[test]
fn b03_a_fence_is_effective_when_too_few_are_left_for_a_commit() {
    let mut site = Site::new();
    site.ok(&format!("{CREATE} --min-units 3"));
    site.kill(2);
    let (exit, shown) = site.json("region show job");
    assert_eq!(exit, 0);
    assert_eq!(
        Site::states(&shown["spread"]),
        ["active", "unreachable", "active", "active"]
    );
    let (exit, fenced) = site.json("region fence job --yes");
    assert_eq!((exit, &fenced["effective"]), (0, &json!(true)), "{fenced}");
    assert_eq!((&fenced["done"], &fenced["needed"]), (&json!(3), &json!(2)));
    assert_eq!(Site::states(&fenced)[1], "unreachable");
    assert!(fenced["members"][0]["report"]["epoch"].as_u64().unwrap() > 0);

    site.kill(1);
    site.kill(3);
    let (exit, fenced) = site.json("region fence job --yes");
    assert_eq!((exit, &fenced["effective"]), (6, &json!(false)), "{fenced}");
    let page = String::from_utf8(site.run("region fence job --yes").stdout).unwrap();
    assert!(
        page.contains("done on 1 of 4, 2 needed; effective: false"),
        "{page}"
    );
}

#[test]
fn d06_a_region_of_the_same_name_is_no_member() {
    let site = Site::new();
    site.ok(CREATE);
    site.ok("region delete job --yes --unit unit-3");
    site.ok("region create job --unit unit-3 --mode overwrite --capacity 4KiB");
    let (_, shown) = site.json("region show job");
    assert_eq!(Site::states(&shown["spread"])[2], "other region");
    let (exit, deleted) = site.json("region delete job --yes");
    assert_eq!((exit, &deleted["done"]), (1, &json!(3)), "{deleted}");
    assert_eq!(site.holders("job"), ["unit-3"]);
}

#[test]
fn p12_a_log_is_created_on_all_units_shown_and_listed() {
    let mut site = Site::new();
    let line = "region create journal --mode append --layout erasure:2+2 \
         --units unit-1,unit-2,unit-3,unit-4 --size 128KiB --grant app:read,append,clear";
    let (_, created) = site.json(line);
    assert_eq!(
        (&created["ring_bytes"], &created["capacity_bytes"]),
        (&json!((128 << 10) - 8192), &json!(0)),
        "{created}"
    );
    assert_eq!(
        (&created["layout"], &created["units_min"]),
        (&json!("erasure:2+2"), &json!(3))
    );
    let (_, shown) = site.json("region show journal");
    assert_eq!(shown["mode"], "append");
    assert_eq!(Site::states(&shown["spread"]), ["active"; 4]);
    assert_eq!(shown["spread"]["ring_bytes"], (128 << 10) - 8192);
    let page = site.ok("region show journal");
    assert!(page.contains("ring:"), "{page}");
    let list = site.ok("region list");
    assert_eq!(list.matches("append  erasure:2+2").count(), 4, "{list}");
    let error = site.fails("region show journal --placement", 2);
    assert!(error.contains("is a log"), "{error}");
    site.kill(2);
    let (exit, fenced) = site.json("region fence journal --yes");
    assert_eq!((exit, &fenced["effective"]), (0, &json!(true)), "{fenced}");
}
