import { defineConfig } from "vite";

// Relative paths, so that the page works in any folder of a site.
export default defineConfig({ base: "./", worker: { format: "es" }, build: { target: "es2022", assetsInlineLimit: 0 } });
