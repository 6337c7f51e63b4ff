//! The numbers of the image format (EROFS on-disk layout, linux/fs/erofs/erofs_fs.h, and the composefs header).
