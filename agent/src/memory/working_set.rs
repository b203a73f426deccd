//! The working set: what restored capsules touch first, recorded at a template's build and filled into a fresh image
//! ahead of the faults.
//!
//! It is a set of chunks, not an order: which pages are touched hardly differs between restores, in which order they
//! are differs a lot. Its file is a memory layer that holds these chunks only, one behind the other, so that it is
//! read in one go where the snapshot's own layer would be read in hundreds of places.

use super::{
    CHUNK, CHUNK_PAGES, PAGE,
    fill::{FillError, fill, present},
    image::Image,
    layer::{Buffers, Layer, LayerError, Writer},
};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Instant,
};

/// Chunks by their number.
pub type Chunks = BTreeSet<usize>;

/// Why a working set could not be recorded or filled in.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// The layer it is taken from, or its own, cannot be used.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The image could not be read or filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// A file failed.
    #[error("working set: {0}")]
    Io(#[from] io::Error),
}

/// What a prefetch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Pages that were written into the image.
    pub pages: u64,
    /// Pages of the set that were there already: a fault was faster.
    pub present: u64,
}

/// How well one recording predicts the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Share of the chunks touched that were predicted, 0 to 1.
    pub hits: f64,
    /// Share of the chunks predicted that were not touched, 0 to 1.
    pub waste: f64,
}

/// (pure) Compares a prediction with what was touched.
pub fn fit(predicted: &Chunks, touched: &Chunks) -> Fit {
    let common = predicted.intersection(touched).count() as f64;
    let share = |part: f64, whole: usize| if whole == 0 { 0.0 } else { part / whole as f64 };
    Fit { hits: share(common, touched.len()), waste: share(predicted.len() as f64 - common, predicted.len()) }
}

/// Where the working set of a snapshot is: beside its layer and named after that, so that another layer's is never used
/// for it.
pub fn path(memory: &Path, layer: &Layer) -> PathBuf {
    memory.with_file_name(format!("working-{:016x}.layer", layer.checksum()))
}

/// The chunks of an image that hold something: what was touched since it was made empty.
pub fn touched(image: &Image) -> Result<Chunks, WorkingSetError> {
    let file = File::open(image.path())?;
    let chunks = file.metadata()?.len() as usize / CHUNK;
    let mut touched = Chunks::new();
    for chunk in 0..chunks {
        if present(&file, chunk)? != 0 {
            touched.insert(chunk);
        }
    }
    Ok(touched)
}

/// Writes the working set of `layer` to `path`, whole or not at all. It can be made again from the snapshot, so it is
/// not synced: one that a crash damaged fails its checksums and is not used.
pub fn write(layer: &Layer, chunks: &Chunks, path: &Path) -> Result<(), WorkingSetError> {
    let draft = path.with_extension("new");
    let mut writer = Writer::new(File::create(&draft)?, layer.ram_bytes())?;
    let mut buffers = Buffers::new()?;
    let mut pages = Vec::with_capacity(CHUNK);
    for chunk in 0..layer.chunks() {
        pages.clear();
        let mut stored = 0;
        if chunks.contains(&chunk) {
            stored = layer.read(chunk, &mut buffers)?.stored;
            for bit in (0..CHUNK_PAGES).filter(|bit| stored >> bit & 1 == 1) {
                pages.extend_from_slice(&buffers.chunk[bit * PAGE..][..PAGE]);
            }
        }
        writer.add(stored, 0, &pages)?;
    }
    writer.finish()?;
    fs::rename(&draft, path)?;
    Ok(())
}

/// The chunks of the working set at `path`.
pub fn read(path: &Path) -> Result<Chunks, WorkingSetError> {
    let set = Layer::open(File::open(path)?)?;
    let holds = |chunk: &usize| set.entry(*chunk).is_some_and(|entry| entry.stored != 0);
    Ok((0..set.chunks()).filter(holds).collect())
}

/// Fills the working set at `path` into `image`. Faults are served meanwhile by whoever gets them; a chunk is filled
/// once, by the first.
pub fn prefetch(path: &Path, image: &Image) -> Result<Prefetched, WorkingSetError> {
    let start = Instant::now();
    let set = Layer::open(File::open(path)?)?;
    let file = OpenOptions::new().read(true).write(true).open(image.path())?;
    if file.metadata()?.len() != set.ram_bytes() {
        return Err(LayerError::Format("the working set is of another memory size".to_owned()).into());
    }
    let mut buffers = Buffers::new()?;
    let mut done = Prefetched::default();
    for chunk in 0..set.chunks() {
        let Some(entry) = set.entry(chunk).filter(|entry| entry.stored != 0) else { continue };
        let (_, pages) = fill(&file, &set, chunk, &mut buffers)?;
        done.pages += pages;
        done.present += u64::from(entry.stored.count_ones()) - pages;
    }
    tracing::debug!(pages = done.pages, present = done.present, took = ?start.elapsed(), "working set filled in");
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{image::Images, layer};
    use std::os::unix::fs::FileExt;

    const CHUNKS: usize = 6;

    /// A layer of six chunks: each begins with a page of its own number (from 1) and is zero behind it, but chunk 4 is
    /// all zero.
    fn layer(folder: &Path) -> Layer {
        let ram = tempfile::tempfile().unwrap();
        ram.set_len((CHUNKS * CHUNK) as u64).unwrap();
        for chunk in (0..CHUNKS).filter(|chunk| *chunk != 4) {
            ram.write_all_at(&[chunk as u8 + 1; PAGE], (chunk * CHUNK) as u64).unwrap();
        }
        let path = folder.join("memory.layer");
        layer::write(&ram, (CHUNKS * CHUNK) as u64, &File::create(&path).unwrap()).unwrap();
        Layer::open(File::open(path).unwrap()).unwrap()
    }

    #[test]
    fn the_set_is_filled_in_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let layer = layer(folder.path());
        let images = Images::on(folder.path());
        let image = images.get("k", layer.ram_bytes()).unwrap();
        let path = path(&folder.path().join("memory.layer"), &layer);
        write(&layer, &Chunks::from([1, 3, 4]), &path).unwrap();
        assert_eq!(prefetch(&path, &image).unwrap(), Prefetched { pages: 2, present: 0 });
        assert_eq!(touched(&image).unwrap(), Chunks::from([1, 3]));
        let file = File::open(image.path()).unwrap();
        let mut page = [0; PAGE];
        file.read_exact_at(&mut page, (3 * CHUNK) as u64).unwrap();
        assert_eq!(page, [4; PAGE]);
        assert_eq!(prefetch(&path, &image).unwrap(), Prefetched { pages: 0, present: 2 });
    }

    #[test]
    fn a_damaged_or_foreign_set_is_refused_and_fills_nothing_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let layer = layer(folder.path());
        let images = Images::on(folder.path());
        let path = path(&folder.path().join("memory.layer"), &layer);
        write(&layer, &Chunks::from([0]), &path).unwrap();
        let other = images.get("other", (2 * CHUNK) as u64).unwrap();
        assert!(prefetch(&path, &other).is_err(), "another size");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 70).unwrap();
        let image = images.get("k", layer.ram_bytes()).unwrap();
        assert!(prefetch(&path, &image).is_err(), "a changed byte");
        assert_eq!(touched(&image).unwrap(), Chunks::new());
        assert!(prefetch(&folder.path().join("none"), &image).is_err());
    }

    #[test]
    fn a_prediction_is_judged_by_what_it_missed_and_what_it_wasted() {
        let set = |chunks: &[usize]| chunks.iter().copied().collect::<Chunks>();
        let fit = super::fit(&set(&[1, 2, 3, 4]), &set(&[2, 3, 4, 5]));
        assert_eq!((fit.hits, fit.waste), (0.75, 0.25));
        assert_eq!(super::fit(&set(&[]), &set(&[])), Fit { hits: 0.0, waste: 0.0 });
    }
}
