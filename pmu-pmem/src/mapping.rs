//! A contiguous memory that others may change while it is looked at, and its safe accessors.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use crate::copy;
use crate::error::AccessError;
use crate::range::ByteRange;
use crate::write_calls::{WRITE_CALL_BYTES_MIN, WriteCalls};

/// A contiguous memory that a NIC, other threads or other processes may change at any time.
///
/// [`crate::PoolMemory`] and [`crate::LocalMemory`] dereference to it. No method hands out a
/// reference into the memory; bytes are copied out and in (see the module `copy` for why that is
/// sound under concurrent change), and words that are to be seen whole go through the 8-byte
/// accessors. All methods may be called from any thread at any time. None of them makes anything
/// durable.
///
/// Offsets and lengths are in bytes, from the start of the memory. A range that doesn't lie wholly
/// inside is refused with [`AccessError::OutOfBounds`] before anything is touched.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
    /// Set where long writes go by write calls.
    write_calls: Option<WriteCalls>,
}

/// What the memory is given back to.
#[derive(Debug)]
enum Owner {
    /// `mmap`, of this many bytes.
    Mapped { mapped_len: NonZeroUsize },
    /// A `Box<[u8]>` of `len` bytes, taken apart with `Box::into_raw`.
    Boxed,
}

// SAFETY: the memory belongs to this value, not to a thread, and munmap and free may run on any
// thread.
unsafe impl Send for Mapping {}
// SAFETY: through `&self` the bytes are touched only by inline assembly, by system calls and by
// atomics, none of which makes a data race; `&mut [u8]` is given out only by `LocalMemory` for
// `&mut self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from its start, shared, for reading and writing.
    pub(crate) fn map_file(
        file: impl AsFd,
        len: NonZeroUsize,
        flags: MapFlags,
    ) -> nix::Result<Self> {
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses addresses that nothing else uses. The flags are those of this
        // crate: none of them is MAP_FIXED.
        let start = unsafe { mman::mmap(None, len, rights, flags, file, 0)? };
        Ok(Self {
            start: start.cast(),
            len: len.get(),
            owner: Owner::Mapped { mapped_len: len },
            write_calls: None,
        })
    }

    /// Has long writes made by write calls to the file that is mapped.
    pub(crate) fn use_write_calls(&mut self, write_calls: WriteCalls) {
        self.write_calls = Some(write_calls);
    }

    /// How bytes are written of which there are `len`: by write calls, or (none) through the
    /// mapping.
    fn write_calls_for(&self, len: usize) -> Option<&WriteCalls> {
        self.write_calls
            .as_ref()
            .filter(|_| len >= WRITE_CALL_BYTES_MIN)
    }

    /// Puts `len` bytes to `offset`, the best way for the memory.
    ///
    /// # Safety
    /// `target` is the address of `offset`, checked for `len` bytes, and no reference into them
    /// exists; `source` is mapped for reading as many for the length of the call.
    unsafe fn put(&self, offset: u64, source: *const u8, target: *mut u8, len: usize) {
        let written = match self.write_calls_for(len) {
            // SAFETY: the caller's promise.
            Some(write_calls) => unsafe { write_calls.write(offset, source, len) },
            None => 0,
        };
        // SAFETY: the rest of both ranges, which the caller promises; `written` is at most `len`.
        unsafe { copy::copy(source.add(written), target.add(written), len - written) };
    }

    /// Maps anonymous zeroed memory: `len` bytes, of which `mapped_len` (not less) are really
    /// mapped.
    pub(crate) fn map_anonymous(len: usize, mapped_len: NonZeroUsize) -> nix::Result<Self> {
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: as in `map_file`.
        let start = unsafe { mman::mmap_anonymous(None, mapped_len, rights, flags)? };
        Ok(Self {
            start: start.cast(),
            len,
            owner: Owner::Mapped { mapped_len },
            write_calls: None,
        })
    }

    /// Takes over a box's bytes.
    pub(crate) fn adopt(bytes: Box<[u8]>) -> Self {
        let len = bytes.len();
        let start = Box::into_raw(bytes).cast::<u8>();
        // A box's pointer is never null; the fallback is for the types alone.
        let start = NonNull::new(start).unwrap_or(NonNull::dangling());
        Self {
            start,
            len,
            owner: Owner::Boxed,
            write_calls: None,
        }
    }

    /// Gives back what [`Self::adopt`] took; a copy where the memory was mapped.
    pub(crate) fn into_box(self) -> Box<[u8]> {
        match self.owner {
            Owner::Boxed => {
                let this = std::mem::ManuallyDrop::new(self);
                // SAFETY: `adopt` took the pointer and length from such a box, and this value,
                // which would give it back, is never dropped. We own it, so nobody else may look at
                // the bytes.
                unsafe { Box::from_raw(this.slice_pointer()) }
            }
            Owner::Mapped { .. } => {
                let mut bytes = vec![0; self.len].into_boxed_slice();
                // SAFETY: both have `len` bytes; the box is ours alone.
                unsafe { copy::copy(self.start.as_ptr(), bytes.as_mut_ptr(), self.len) };
                bytes
            }
        }
    }

    fn slice_pointer(&self) -> *mut [u8] {
        std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len)
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a pool is never empty")]
    pub const fn len(&self) -> u64 {
        self.len as u64
    }

    /// The address of the first byte, for registering the memory with a NIC.
    ///
    /// Looking through this pointer is for the caller to justify. Who gives it to a device keeps
    /// this value (or its `Arc`) alive, unmoved from its owner, until the device has let go.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The address of a range that has been checked to lie inside.
    fn pointer(&self, offset: u64, len: usize) -> Result<*mut u8, AccessError> {
        let (offset, _) = ByteRange::new(offset, len as u64).check(self.len)?;
        // SAFETY: `offset` is at most `len`, the length of the one allocation that `start` begins.
        Ok(unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copies `bytes.len()` bytes from `offset` on into `bytes`.
    ///
    /// Where others write at the same time, each byte is some value that it had during the call.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), AccessError> {
        let source = self.pointer(offset, bytes.len())?;
        // SAFETY: the source is checked, and mapped while `self` lives; the target is a slice.
        unsafe { copy::copy(source, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `bytes` to `offset`. They are seen by others before anything that this thread stores
    /// later with [`Self::store_u64_release`]. Not durable.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let target = self.pointer(offset, bytes.len())?;
        // SAFETY: the target is checked, mapped for writing while `self` lives, and no reference
        // into it exists, as `LocalMemory` gives those for `&mut self` only.
        unsafe { self.put(offset, bytes.as_ptr(), target, bytes.len()) };
        Ok(())
    }

    /// Copies `len` bytes from another memory (or this one: where the two ranges overlap, any
    /// mixture of old and new bytes may come out). Not durable.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`] for either range.
    pub fn copy_from(
        &self,
        offset: u64,
        source: &Self,
        source_offset: u64,
        len: usize,
    ) -> Result<(), AccessError> {
        let target = self.pointer(offset, len)?;
        let source = source.pointer(source_offset, len)?;
        // SAFETY: both ranges are checked and mapped while their owners are borrowed; no references
        // exist.
        unsafe { self.put(offset, source, target, len) };
        Ok(())
    }

    /// Sets `len` bytes from `offset` on to zero. Not durable.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), AccessError> {
        let (_, checked_len) = ByteRange::new(offset, len).check(self.len)?;
        let target = self.pointer(offset, checked_len)?;
        let written = match self.write_calls_for(checked_len) {
            Some(write_calls) => write_calls.zero(offset, checked_len),
            None => 0,
        };
        // SAFETY: as in `write_at`; `written` is at most `checked_len`.
        unsafe { copy::zero(target.add(written), checked_len - written) };
        Ok(())
    }

    fn word(&self, offset: u64) -> Result<&AtomicU64, AccessError> {
        let pointer = self.pointer(offset, 8)?;
        if !(pointer as usize).is_multiple_of(8) {
            return Err(AccessError::Misaligned { offset });
        }
        // SAFETY: eight mapped bytes, aligned, for as long as `self` is borrowed. All other
        // accesses of this process are atomic or not Rust's (see `Sync` above).
        Ok(unsafe { AtomicU64::from_ptr(pointer.cast()) })
    }

    /// Stores one word, little-endian, in one piece: others see the old or the new one, and with
    /// the new one everything that this thread wrote before. After a power cut likewise the old or
    /// the new one. Not durable by itself.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`]; [`AccessError::Misaligned`] where its address isn't a multiple
    /// of 8.
    pub fn store_u64_release(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        self.word(offset)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// Loads one little-endian word in one piece, and with it everything that its writer wrote
    /// before.
    ///
    /// # Errors
    /// As [`Self::store_u64_release`].
    pub fn load_u64_acquire(&self, offset: u64) -> Result<u64, AccessError> {
        Ok(u64::from_le(self.word(offset)?.load(Ordering::Acquire)))
    }

    /// Gives `len` bytes from `offset` on to `look`, piece by piece, each copied into `scratch`
    /// first.
    ///
    /// So a checksum is computed over, say, 256 KiB while they are in the cache, and over the very
    /// bytes that are used afterwards.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`], or [`AccessError::NoScratch`] for an empty scratch; `look` was
    /// not called.
    pub fn for_each_piece(
        &self,
        offset: u64,
        len: u64,
        scratch: &mut [u8],
        mut look: impl FnMut(&[u8]),
    ) -> Result<(), AccessError> {
        ByteRange::new(offset, len).check(self.len)?;
        if scratch.is_empty() {
            return Err(AccessError::NoScratch);
        }
        let mut done = 0;
        while done < len {
            let piece_len = (len - done).min(scratch.len() as u64);
            let piece = &mut scratch[..piece_len as usize];
            self.read_at(offset + done, piece)?;
            look(piece);
            done += piece_len;
        }
        Ok(())
    }

    /// Receives up to `len` bytes from a socket straight to `offset`: one `recv`, no copy in
    /// between.
    ///
    /// `flags` are those of recv(2). Blocks as the socket does. A call that a signal interrupted is
    /// made again. Returns how many bytes came; 0 means that the other end closed (or `len` is 0).
    /// Not durable.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` around an [`AccessError`] for a range outside.
    pub fn recv_into(
        &self,
        socket: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: i32,
    ) -> io::Result<usize> {
        let target = self.pointer(offset, len)?;
        if self.write_calls_for(len).is_some() {
            return WriteCalls::receive(socket, len, flags, |bytes| {
                // SAFETY: the target is checked for `len` bytes, of which no more are received.
                unsafe { self.put(offset, bytes.as_ptr(), target, bytes.len()) };
            });
        }
        loop {
            // SAFETY: the target is checked and mapped for writing while `self` lives. The kernel
            // writes it, as another process would: no reference into it exists.
            let count = unsafe { libc::recv(socket.as_raw_fd(), target.cast(), len, flags) };
            if let Some(result) = crate::socket::outcome(count) {
                return result;
            }
        }
    }

    /// Sends up to `len` bytes from `offset` on to a socket: one `send`, no copy in between, and no
    /// SIGPIPE.
    ///
    /// `flags` are those of send(2), without those that let the kernel keep the pages
    /// (MSG_ZEROCOPY). Returns how many bytes went. Where others write the bytes at the same time,
    /// any mixture goes.
    ///
    /// # Errors
    /// As [`Self::recv_into`].
    pub fn send_from(
        &self,
        socket: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: i32,
    ) -> io::Result<usize> {
        crate::socket::send_pieces(
            socket,
            &[crate::socket::SendPiece::Memory(self, offset, len)],
            flags,
        )
    }

    /// A piece for the kernel: the range as an iovec.
    pub(crate) fn iovec(&self, offset: u64, len: usize) -> Result<libc::iovec, AccessError> {
        let start = self.pointer(offset, len)?;
        Ok(libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        })
    }

    /// The bytes, for an owner that nobody else can be looking through.
    pub(crate) fn bytes_mut(&mut self, offset: u64, len: u64) -> Result<&mut [u8], AccessError> {
        let (_, checked_len) = ByteRange::new(offset, len).check(self.len)?;
        let start = self.pointer(offset, checked_len)?;
        // SAFETY: checked, initialised (zero pages or a former box), and `&mut self` excludes every
        // accessor of this process; that no device is at it, is the contract of `as_ptr`.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, checked_len) })
    }

    /// Passes advice about the whole memory to the kernel.
    pub(crate) fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        let Owner::Mapped { mapped_len } = self.owner else {
            return Ok(());
        };
        // SAFETY: the range is one whole mapping of ours; callers give only advice that changes no
        // bytes.
        unsafe { mman::madvise(self.start.cast(), mapped_len.get(), advice) }
    }

    /// Makes the kernel set up the page tables of a range for writing, in one go instead of one
    /// fault a page.
    ///
    /// A hint: on a kernel without MADV_POPULATE_WRITE (before 5.14), and on an adopted memory,
    /// nothing happens. It changes no bytes. Where the pages must still be found (local memory),
    /// this allocates them. Blocks meanwhile.
    ///
    /// # Errors
    /// [`AccessError::OutOfBounds`].
    pub fn populate(&self, offset: u64, len: u64) -> Result<(), AccessError> {
        let (offset, len) = ByteRange::new(offset, len).check(self.len)?;
        let Owner::Mapped { .. } = self.owner else {
            return Ok(());
        };
        let page = page_bytes();
        let first = offset / page * page;
        let populate_len = (offset + len - first).next_multiple_of(page);
        // SAFETY: whole pages of our own mapping (its last page is mapped to its end); populating
        // changes no bytes. A failure is a hint not taken.
        unsafe {
            let start = self.start.as_ptr().add(first);
            libc::madvise(start.cast(), populate_len, libc::MADV_POPULATE_WRITE);
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match self.owner {
            Owner::Mapped { mapped_len } => {
                // SAFETY: the mapping is ours, and with `self` goes the last way to it (`as_ptr`'s
                // contract). It can't fail for a range that mmap returned.
                let _ = unsafe { mman::munmap(self.start.cast(), mapped_len.get()) };
            }
            // SAFETY: `adopt` took it from such a box; dropped once.
            Owner::Boxed => drop(unsafe { Box::from_raw(self.slice_pointer()) }),
        }
    }
}

/// Bytes of a page of this machine.
pub(crate) fn page_bytes() -> usize {
    static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *PAGE.get_or_init(|| {
        // SAFETY: sysconf has no requirements.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two())
            .unwrap_or(4096)
    })
}
