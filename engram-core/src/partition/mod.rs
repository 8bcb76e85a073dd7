mod record;
mod requests;
mod stream;
