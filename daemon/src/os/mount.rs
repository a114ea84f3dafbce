//! stand-in
/// x
pub fn enter_private_namespace() -> std::io::Result<()> {
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)?; }
    rustix::mount::mount_change("/", rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC)?;
    Ok(())
}
