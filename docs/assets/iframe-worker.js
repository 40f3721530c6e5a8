// The search runs in a worker, and browsers start none for a page that was opened from a disk. There a hidden frame takes
// its place, so that the site is complete without a server.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.scope = new Promise((resolve) => {
        const frame = document.createElement("iframe")
        frame.hidden = true
        frame.srcdoc = "<!doctype html><body></body>"
        frame.onload = () => {
          const scope = frame.contentWindow
          const script = scope.document.createElement("script")
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
          script.src = url
          script.onload = () => resolve(scope)
          scope.document.body.append(script)
        }
        document.body.append(frame)
      })
    }

    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data })))
    }
  }
}
