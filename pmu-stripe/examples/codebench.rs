//! How fast the codes are, for each kernel of this processor, against `memcpy` of the same bytes.
//!
//! ```text
//! cargo run --release -p pmu-stripe --example codebench [ROUNDS] [KERNEL...]
//! ```
//!
//! Shards of 1 MiB, one after the other in memory as the subsegments of a checkpoint are. Every
//! round runs each case once, so that whatever else disturbs the machine disturbs all; printed are
//! medians, in GB (10^9 bytes) of input a second: of data for encode, of what is read for rebuild.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a program that prints"
)]

use std::hint::black_box;
use std::time::Instant;

use pmu_stripe::{Code, Kernel, Layout, Reconstruct, ShardIndex, ShardSet};

const SHARD_LEN: usize = 1 << 20;
const ROUNDS: usize = 41;

struct Case {
    name: String,
    input_len: usize,
    run: Box<dyn FnMut()>,
    seconds: Vec<f64>,
}

impl Case {
    fn new(name: String, input_len: usize, run: impl FnMut() + 'static) -> Case {
        Case {
            name,
            input_len,
            run: Box::new(run),
            seconds: Vec::new(),
        }
    }

    fn time(&mut self) {
        // Short cases are repeated until they take about a millisecond.
        let repeats = (8 << 20) / self.input_len + 1;
        let start = Instant::now();
        for _ in 0..repeats {
            (self.run)();
        }
        self.seconds
            .push(start.elapsed().as_secs_f64() / repeats as f64);
    }

    /// GB/s of input.
    fn median(&mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.input_len as f64 / self.seconds[self.seconds.len() / 2] / 1e9
    }
}

fn filled(len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 31 + index / 253) as u8)
        .collect()
}

fn copy(data_shards: usize) -> Case {
    let len = data_shards * SHARD_LEN;
    let (from, mut to) = (filled(len), vec![0; len]);
    Case::new(format!("memcpy {data_shards} MiB"), len, move || {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    })
}

fn encode(kernel: Kernel, layout: Layout) -> Case {
    let code = Code::with_kernel(layout, kernel);
    let data = filled(layout.data_shards() * SHARD_LEN);
    let mut redundant = vec![0; layout.redundant_shards() * SHARD_LEN];
    Case::new(format!("encode {layout}"), data.len(), move || {
        let data: Vec<&[u8]> = black_box(&data).chunks(SHARD_LEN).collect();
        let mut redundant: Vec<&mut [u8]> = redundant.chunks_mut(SHARD_LEN).collect();
        code.encode(&data, &mut redundant)
            .expect("shards of one length");
        black_box(&mut redundant);
    })
}

fn rebuild(kernel: Kernel, layout: Layout, lost: usize) -> Case {
    let code = Code::with_kernel(layout, kernel);
    let present = code
        .shards()
        .without(ShardSet::EMPTY.with(ShardIndex(lost)));
    let plan = Reconstruct::new(&code, present).expect("one loss is tolerated");
    let sources = filled(layout.data_shards() * SHARD_LEN);
    let mut target = vec![0; SHARD_LEN];
    Case::new(
        format!("rebuild shard {lost} of {layout}"),
        sources.len(),
        move || {
            let sources: Vec<&[u8]> = black_box(&sources).chunks(SHARD_LEN).collect();
            plan.apply(&sources, &mut [&mut target])
                .expect("shards of one length");
            black_box(&mut target);
        },
    )
}

/// Adds a shard in pieces of 64 KiB, as data that streams by.
fn add(kernel: Kernel, layout: Layout) -> Case {
    const PIECE_LEN: usize = 64 << 10;
    let code = Code::with_kernel(layout, kernel);
    let data = filled(layout.data_shards() * SHARD_LEN);
    let mut redundant = vec![0; layout.redundant_shards() * SHARD_LEN];
    Case::new(format!("add 64 KiB to {layout}"), data.len(), move || {
        let mut redundant: Vec<&mut [u8]> = redundant.chunks_mut(SHARD_LEN).collect();
        for offset in (0..SHARD_LEN).step_by(PIECE_LEN) {
            for (shard, data) in black_box(&data).chunks(SHARD_LEN).enumerate() {
                let bytes = &data[offset..offset + PIECE_LEN];
                code.add(ShardIndex(shard), offset, bytes, &mut redundant)
                    .expect("within");
            }
        }
        black_box(&mut redundant);
    })
}

fn cases(kernel: Kernel) -> Vec<Case> {
    let layout = |text: &str| text.parse::<Layout>().expect("a layout");
    let mut cases = vec![copy(4), copy(10)];
    for text in [
        "parity:4+1",
        "erasure:4+1",
        "erasure:4+2",
        "erasure:10+4",
        "erasure:16+8",
    ] {
        cases.push(encode(kernel, layout(text)));
    }
    cases.push(rebuild(kernel, layout("erasure:4+2"), 1));
    cases.push(rebuild(kernel, layout("parity:4+1"), 1));
    cases.push(add(kernel, layout("erasure:4+2")));
    cases
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    let rounds = match arguments
        .peek()
        .and_then(|argument| argument.parse::<usize>().ok())
    {
        Some(rounds) => {
            arguments.next();
            rounds.max(1)
        }
        None => ROUNDS,
    };
    let names: Vec<String> = arguments.collect();
    println!(
        "{:<12} {:<32} {:>8} {:>8}",
        "kernel", "case", "GB/s", "/ memcpy"
    );
    for kernel in Kernel::available() {
        if !names.is_empty() && !names.contains(&kernel.name().to_string()) {
            continue;
        }
        let mut cases = cases(kernel);
        for _ in 0..rounds {
            cases.iter_mut().for_each(Case::time);
        }
        let copies = [cases[0].median(), cases[1].median()];
        for case in &mut cases {
            let copy = if case.input_len <= 4 * SHARD_LEN {
                copies[0]
            } else {
                copies[1]
            };
            let rate = case.median();
            let (name, ratio) = (&case.name, rate / copy);
            println!("{:<12} {name:<32} {rate:>8.2} {ratio:>8.2}", kernel.name());
        }
    }
}
