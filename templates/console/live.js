// Fetches the changed parts again when the appliance says that something changed, at most once a second.
const link = document.getElementById("link");
let asked = false;
async function refresh() {
  asked = false;
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]"))
    part.innerHTML = page.querySelector(`[data-live="${part.dataset.live}"]`).innerHTML;
  ages();
}
function changed() { if (!asked) { asked = true; setTimeout(refresh, 1000); } }
function ages() {
  for (const time of document.querySelectorAll("time")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000));
    time.textContent = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
  }
}
const stream = new EventSource("/api/v1/changes");
stream.addEventListener("machine", changed);
stream.addEventListener("missed", changed);
stream.onopen = () => { link.textContent = "live"; changed(); };
stream.onerror = () => { link.textContent = "connection lost, trying again"; };
setInterval(ages, 1000);
ages();
