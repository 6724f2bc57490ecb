// Search runs in a worker, and browsers start no worker from a file. Where the site is read from the file system the
// worker's script runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.document.open();
      inside.document.write("<head></head>");
      inside.document.close();
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      const script = inside.document.createElement("script");
      this.loaded = new Promise((resolve, reject) => {
        script.onload = resolve;
        script.onerror = reject;
      });
      this.loaded.catch((event) => this.onerror?.(event));
      script.src = url;
      inside.document.head.append(script);
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow?.onmessage?.({ data: structuredClone(data) }), () => {});
    }
    terminate() {
      this.frame.remove();
    }
  };
}
