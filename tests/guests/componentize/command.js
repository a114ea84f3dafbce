// A command: says hello, and ends.

export const run = {
    run() {
        console.log("hello from JavaScript");
    },
};
