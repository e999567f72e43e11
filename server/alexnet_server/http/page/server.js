// Talking to the server: keys, uploads, and photos that are too large for it.

export const LONGEST_SIDE = 2048; // the network looks at 256 pixels; more than this only costs time
export const LARGE_BYTES = 10 * 1024 * 1024; // the server's default limit for a photo

export function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// {answer, response}: the answer is the server's JSON, good or bad
export async function post(path, query, body, signal) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, { method: "POST", body, headers: headers(), signal });
  return { answer: await response.json(), response };
}

// As `post`, with the photo as the form's one part. One that is too large is scaled down here and sent again.
export async function postPhoto(path, query, photo, signal) {
  if (photo.file.size > LARGE_BYTES) await scaleDown(photo);
  const first = await post(path, query, form(photo.file), signal);
  if (first.response.status !== 413 || photo.scaled || !(await scaleDown(photo))) return first;
  return post(path, query, form(photo.file), signal);
}

function form(file) {
  const body = new FormData();
  body.append("image", file, file.name || "photo");
  return body;
}

// Whether the browser could decode it; if so `photo.file` is a smaller JPEG of the same name
async function scaleDown(photo) {
  photo.scaled = true;
  let bitmap;
  try {
    bitmap = await createImageBitmap(photo.file, { imageOrientation: "from-image" });
  } catch {
    return false;
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // what the server puts behind transparent photos
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  photo.file = new File([blob], photo.file.name || "photo.jpg", { type: "image/jpeg" });
  photo.note = `${photo.note}Scaled down to ${canvas.width} x ${canvas.height} before sending. `;
  return true;
}
